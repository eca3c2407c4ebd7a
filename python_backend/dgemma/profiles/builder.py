"""`dgemma-build` as another program: the runtime imports nothing of it.

Knows how it is called and what it prints; knows nothing of engines.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "dgemma_build"


class BuildFailed(Exception):
    """What the builder said last."""


@dataclass(frozen=True)
class Builder:
    """An installed builder; `command` begins every call of it."""

    command: tuple[str, ...]

    @classmethod
    def here(cls) -> Builder | None:
        """None where none is installed."""
        if importlib.util.find_spec(PACKAGE) is None:
            return None
        return cls((_python(), "-m", f"{PACKAGE}.cli"))

    def output(self, *arguments: str) -> str:
        """What a command prints on standard output; BuildFailed where it fails."""
        done = subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, env=_environment()
        )
        if done.returncode:
            raise BuildFailed(_last(done.stderr.splitlines()))
        return done.stdout

    def run(self, *arguments: str, say: Callable[[str], None]) -> None:
        """Run a command to its end; every line of it is said. BuildFailed where it fails."""
        process = subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
        )
        lines: list[str] = []
        with process:
            assert process.stdout is not None
            try:
                for line in map(str.strip, process.stdout):
                    if line:
                        lines.append(line)
                        say(line)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise BuildFailed(_last(lines))


def _last(lines: list[str]) -> str:
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else "it ended without a word"


def _environment() -> dict[str, str]:
    # Its modules are found where ours are, though Triton's stub has added to the path by itself.
    path = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": path}


def _python() -> str:
    """This interpreter; where it is embedded in another program, the one of its environment."""
    own = Path(sys.executable or "")
    if own.name.startswith("python"):
        return str(own)
    beside = Path(sys.prefix) / "bin" / "python3"
    return str(beside) if beside.exists() else shutil.which("python3") or "python3"
