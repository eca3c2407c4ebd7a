"""Whether an engine was found right, by the report beside it or by asking once more.

Knows how `dgemma-build verify` is called and what its end means. It runs in a process of its own,
for an engine that is not right may end the process that runs it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dgemma.bench.report import Report, read_report
from dgemma.engine.kernel_sources import executed
from dgemma.errors import ConfigurationError
from dgemma.manifest import Manifest
from dgemma.profiles.layout import REPORT
from dgemma.triton_server import with_parent

# An engine can end a process in these ways; in others it was ended by somebody else.
_OWN = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_BAD_INPUT = 2


@dataclass(frozen=True)
class Engine:
    """What is verified. `runs_here`: passes are run on this machine, and timed."""

    directory: Path
    store: Path | None
    runs_here: bool


def verified_before(engine: Engine) -> Report | None:
    """The report that says so; None where there is none of this graph, or it says too little."""
    try:
        report = read_report(engine.directory / REPORT)
        manifest = Manifest.read(engine.directory)
    except ConfigurationError:
        return None
    same = report.engine.graph_sha256 == executed(manifest)
    enough = report.executed or not engine.runs_here
    return report if report.passed and same and enough else None


def verify(engine: Engine, say: Callable[[str], None]) -> str | None:
    """Why the engine must not be used; None where it is right. The report is kept beside it.

    Raises ConfigurationError where it could not be told.
    """
    report = engine.directory / f"{REPORT}.partial"
    report.unlink(missing_ok=True)
    status, last = _run(_command(engine, report), say)
    if report.exists():
        found = read_report(report)
        report.rename(engine.directory / REPORT)
        if found.passed and (found.executed or not engine.runs_here):
            return None
        failed = [f"{c.name}: {c.detail}" for c in found.checks if c.outcome == "failed"]
        return "; ".join(failed) or "its passes were not run"
    if -status in _OWN:
        return f"the process that ran it ended by {signal.Signals(-status).name}: {last}"
    raise ConfigurationError(
        f"{engine.directory}: could not be verified (status {status}): {last}; run this again"
    )


def _command(engine: Engine, report: Path) -> list[str]:
    verify = [sys.executable, "-m", "dgemma_build.cli", "verify", str(engine.directory)]
    store = ["--store", str(engine.store)] if engine.store else []
    device = ["--device"] if engine.runs_here else []
    watched = [sys.executable, with_parent.__file__, str(os.getpid())]
    return [*watched, *verify, "--json", str(report), *store, *device]


def _run(command: list[str], say: Callable[[str], None]) -> tuple[int, str]:
    """Exit status, and the last line of what was said; every line of it is said here too."""
    last = "without a word"
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        assert process.stdout is not None
        try:
            for line in map(str.rstrip, process.stdout):
                if line:
                    last = line.strip()
                    say(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode, last
