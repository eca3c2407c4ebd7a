"""The load test's command line as its users type it, and tenants for a service to have.

Knows processes, files and keys; knows nothing of what is promised.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PLATFORM = "h100-fp8"
SPEED = f"{PLATFORM}-goal"  # a pass of eight canvases takes 18 ms
PATIENCE_S = 240.0
LOADTEST = (sys.executable, "-m", "dgemma_loadtest.cli")
DGEMMA = (sys.executable, "-m", "dgemma")
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """One command that has ended."""

    code: int
    said: str
    out: Path

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "summary.json").read_text()))


def run(
    scenario: Path,
    out: Path,
    *options: str,
    checkpoint: Path,
    environment: dict[str, str] | None = None,
    interrupt: Callable[[Path], bool] | None = None,
) -> Ran:
    """`dgemma-loadtest run` to its end; with `interrupt`, Ctrl-C as soon as that is true of OUT."""
    command = [*LOADTEST, "run", "--scenario", str(scenario), "--out", str(out)]
    command += [
        "--checkpoint",
        str(checkpoint),
        "--repository",
        str(REPOSITORY / "model_repository"),
    ]
    out.mkdir(parents=True)
    with (out / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            if interrupt is not None:
                _wait(lambda: process.poll() is not None or interrupt(out))
                process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        return Ran(code, said.read(), out)


def records(out: Path) -> int:
    """Lines that are there by now."""
    path = out / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def written(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def tenants(scratch: Path, weights: dict[str, float]) -> tuple[Path, Path]:
    """The service's file of tenants, and the load test's of their keys."""
    entries, keys = [], {}
    for name, weight in weights.items():
        made = subprocess.run(
            [*DGEMMA, "tenants", "hash-key", "--generate"],
            capture_output=True,
            text=True,
            check=True,
        )
        keys[name] = made.stderr.split()[-1]
        entries.append({"name": name, "weight": weight, "keys": [_hash(made.stdout)]})
    return (
        written(scratch / "tenants.yaml", {"tenants": entries}),
        written(scratch / "keys.yaml", keys),
    )


def _hash(said: str) -> str:
    return next(word for word in said.split() if word.startswith("sha256:"))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.05)


def stage(name: str, seconds: float, loads: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "duration_s": seconds,
        "warmup_s": seconds / 6,
        "drain_s": 30,
        "loads": list(loads),
    }
