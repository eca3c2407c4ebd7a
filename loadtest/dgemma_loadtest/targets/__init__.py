"""What is measured, by its URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dgemma_loadtest.clock import Clock
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.targets.base import Target
from dgemma_loadtest.targets.contract import MODEL
from dgemma_loadtest.targets.openai import OpenAITarget
from dgemma_loadtest.targets.triton import TritonTarget

_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[^\s/:]+):[0-9]{1,5}")


def check(url: str, option: str = "target") -> None:
    """Raises InputError unless the URL is of a kind that is known."""
    scheme, mark, rest = url.partition("://")
    if mark and scheme in ("http", "https") and rest:
        return
    if mark and scheme in ("grpc", "grpcs") and _ADDRESS.fullmatch(rest.rstrip("/")):
        return
    raise InputError(
        f"{option}: got {url!r}; allowed: grpc://HOST:PORT or grpcs://HOST:PORT (this service), "
        "http://HOST:PORT or https://… (its front, or any server that speaks as OpenAI's)"
    )


def open_target(
    url: str,
    clock: Clock,
    *,
    keys: Mapping[str, str] | None = None,
    model: str | None = None,
    ca: Path | None = None,
) -> Target:
    """Nothing is sent yet. `keys` by tenant. Raises InputError."""
    check(url)
    scheme, _, rest = url.partition("://")
    if scheme.startswith("http"):
        return OpenAITarget(url, clock, keys=keys, model=model, ca=ca)
    return TritonTarget(
        rest.rstrip("/"), clock, keys=keys, model=model or MODEL, tls=scheme == "grpcs", ca=ca
    )
