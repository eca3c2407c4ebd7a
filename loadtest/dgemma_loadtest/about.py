"""What a server does not say of itself, from whoever runs it: its machine and its engine.

Knows the fields; adds them to `run.json` and changes no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dgemma_loadtest import run_file
from dgemma_loadtest.errors import InputError

KEYS = ("platform", "precision", "hardware", "driver", "engine_hash")


def parse(given: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE`s. Raises InputError."""
    found: dict[str, str] = {}
    for text in given:
        key, mark, value = text.partition("=")
        if key not in KEYS or not mark or not value:
            raise InputError(f"about: got {text!r}; allowed: KEY=VALUE with {', '.join(KEYS)}")
        found[key] = value
    return found


def add(directory: Path, about: Mapping[str, str]) -> None:
    """Into the run of a directory; what the server says itself stays."""
    if not about:
        return
    run = run_file.read(directory)
    server = run.server
    told = {key: value for key, value in about.items() if key not in ("platform", "precision")}
    server = replace(
        server,
        profile=server.profile or about.get("platform"),
        precision=server.precision or about.get("precision"),
        more={**told, **server.more},
    )
    run_file.write(replace(run, server=server), directory)
