"""One run from outside the generator's process: started, shown, stopped, summed up.

Knows signals and what a directory of results holds; the measuring is the other process's, which
nothing here can hold up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from dgemma_loadtest import recording, run_file
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.generator.order import ORDER, STOP, Order
from dgemma_loadtest.metrics import summary
from dgemma_loadtest.metrics.summary import Summary, summarise

COMMAND = (sys.executable, "-m", "dgemma_loadtest.generator.worker")
SUMMARY, TABLE = "summary.json", "summary.csv"
RESULTS = (run_file.FILE, recording.FILE, SUMMARY, TABLE, "report.html", "junit.xml")
_STOP_S = 30.0

Event = dict[str, Any]


def run(order: Order, show: Callable[[Event], None]) -> Summary:
    """Runs an order to its end, or until Ctrl-C, and writes the figures of whatever was measured.

    Raises InputError where it could not begin: there is no directory of results then.
    """
    assert order.out is not None, "a run's results need a directory"
    out = prepared(Path(order.out))
    process = started()
    assert process.stdin is not None and process.stdout is not None
    error = None
    try:
        process.stdin.write(ORDER.dump_json(order) + b"\n")
        process.stdin.flush()
        with stopping(process):
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "error":
                    error = str(event["message"])
                show(event)
        code = process.wait(_STOP_S)
    finally:
        ended(process)
    if not (out / run_file.FILE).exists():
        raise InputError(error or f"the generator ended with {code} before it began")
    if error is not None or code != 0:
        why = error or f"the generator's process ended with {code}"
        run_file.write(replace(run_file.read(out), state="failed", why=why), out)
    return summed_up(out)


def summed_up(directory: Path) -> Summary:
    """Figures of a directory's records, written beside them. Raises InputError."""
    result = summarise(run_file.read(directory), recording.read(directory))
    (directory / SUMMARY).write_bytes(summary.to_json(result))
    (directory / TABLE).write_text(summary.to_csv(result), encoding="utf-8")
    return result


def prepared(directory: Path) -> Path:
    """The directory, made, and without an earlier run's files. Raises InputError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"out: {directory}: cannot be written ({error.strerror})") from None
    return directory


def started() -> subprocess.Popen[bytes]:
    """A generator's process in a session of its own: Ctrl-C reaches its parent alone."""
    return subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    """Make sure of it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()  # without its parent it stops by itself
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within it SIGINT and SIGTERM end the run, keeping what was measured; a second one kills."""
    stdin = process.stdin
    assert stdin is not None
    asked = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            process.kill()
            return
        with suppress(OSError):
            os.write(stdin.fileno(), STOP.encode() + b"\n")

    before = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
