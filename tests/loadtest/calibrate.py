"""What the load test says of a server, against what that server did by its own log.

Knows how to run both at once, apart on two cores where there are two, and which of their figures
belong together; what difference is allowed is the caller's to say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dgemma_loadtest import driver, recording, run_file
from dgemma_loadtest.generator.order import Order
from dgemma_loadtest.metrics.latency import between_blocks, end_to_end, first_block
from dgemma_loadtest.metrics.overhead import overhead
from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.records import Outcome, Record
from dgemma_loadtest.scenario import parse
from tests.loadtest.server import REPOSITORY, TruthServer, truth_server

Through = Literal["generator", "locust"]
LEVELS = (0.5, 0.95, 0.99)
SERVER_CORE, CLIENT_CORE = 0, 1


@dataclass(frozen=True)
class Pace:
    """Latencies that are drawn: medians in milliseconds, and blocks of an answer at most."""

    first_ms: float
    block_ms: float
    blocks: int = 5
    sigma: float = 0.3

    def options(self) -> list[str]:
        return [
            *("--first-ms", str(self.first_ms), "--block-ms", str(self.block_ms)),
            *("--blocks", str(self.blocks), "--sigma", str(self.sigma)),
        ]


@dataclass(frozen=True)
class Error:
    """A percentile: what we say over what was true, less one."""

    figure: str  # first block, block or end to end
    level: float
    ours_s: float
    truth_s: float

    @property
    def relative(self) -> float:
        return self.ours_s / self.truth_s - 1


@dataclass(frozen=True)
class Calibration:
    blocks: int
    errors: list[Error]
    lag_p99_s: float
    cpu_share: float | None  # of the generator

    def worst(self, level: float) -> Error:
        return max((e for e in self.errors if e.level == level), key=lambda e: abs(e.relative))


def calibrate(
    through: Through, users: int, seconds: float, pace: Pace, protocol: str = "grpc"
) -> Calibration:
    """Of `users` that ask again as soon as they have their answer."""
    with _apart(pace.options()) as server, tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        target = getattr(server, protocol)
        _offer(through, {"users": users}, target, seconds, out)
        records = [r for r in recording.read(out) if r.outcome is Outcome.OK]
        client = run_file.read(out).client
        truth = [entry for entry in server.truth() if entry["ended"] == "whole"]
    ours, true = _figures(records), _truths(truth)
    return Calibration(
        blocks=sum(len(record.chunks) for record in records),
        errors=[
            Error(figure, level, percentile(ours[figure], level), percentile(true[figure], level))
            for figure in ours
            for level in LEVELS
        ],
        lag_p99_s=overhead(records, None).lag_p99_s or 0.0,
        cpu_share=None if client is None else client.cpu_share,
    )


@dataclass(frozen=True)
class Stall:
    """Requests that came while a server did nothing, as they were measured."""

    due: int  # in those seconds: rate × seconds
    waited_half: int  # that took longer than half of them
    longest_s: float
    seconds: float


def stalled(through: Through, rate: float, seconds: float, stall_s: float) -> Stall:
    """A constant `rate`, and in the middle of it a server that does nothing for `stall_s`."""
    pace = Pace(first_ms=20.0, block_ms=10.0, blocks=1, sigma=0.0)
    options = [*pace.options(), "--stall-s", str(stall_s)]
    with _apart(options) as server, tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        load = {"arrivals": {"process": "constant", "rate": rate}, "connections": 8}
        _offer(through, load, server.grpc, seconds, out, stall=server)
        firsts = [first_block(record) for record in recording.read(out)]
    took = [first for first in firsts if first is not None]
    return Stall(
        due=round(rate * stall_s),
        waited_half=sum(first > stall_s / 2 for first in took),
        longest_s=max(took),
        seconds=stall_s,
    )


def _offer(
    through: Through,
    load: dict[str, Any],
    target: str,
    seconds: float,
    out: Path,
    stall: TruthServer | None = None,
) -> None:
    stage = {"name": "all", "duration_s": seconds, "loads": [load]}
    content = {"schema": 1, "name": "calibration", "stages": [stage]}
    if through == "generator":
        order = Order(
            scenario=parse(content).model_dump(mode="json", by_alias=True, exclude_none=True),
            target=target,
            out=str(out),
            fit="off",
        )
        driver.run(order, _stalling(stall, seconds / 2))
        return
    path = out.with_suffix(".yaml")
    path.write_text(str(content))  # Python's notation of these is YAML
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    command += ["--host", target, "--only-summary", "-u", str(load.get("users", 1)), "-r", "1000"]
    variables = {"SCENARIO": str(path), "OUT": str(out), "FIT": "off"}
    environment = {f"DGEMMA_LOADTEST_{name}": value for name, value in variables.items()}
    process = subprocess.Popen(
        [*command, "-t", f"{seconds:g}s"],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if stall is not None:
            _when_half(out, seconds, stall)
        process.wait(seconds + 60)
    finally:
        process.kill()
        process.wait()


def _stalling(server: TruthServer | None, after_s: float) -> Any:
    """A listener that stalls the server once, so many seconds into the run."""
    done = server is None

    def show(event: dict[str, Any]) -> None:
        nonlocal done
        if not done and event["event"] == "progress" and event["elapsed_s"] >= after_s:
            done = True
            assert server is not None
            server.stall()

    return show


def _when_half(out: Path, seconds: float, server: TruthServer) -> None:
    """Stall the server when records of half the time are there."""
    path = out / recording.FILE
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        time.sleep(0.1)
        if path.exists() and path.stat().st_size:
            last = path.read_bytes().rsplit(b"\n", 2)[-2]
            if recording.from_json(last).scheduled_s >= seconds / 2:
                break
    server.stall()


@contextmanager
def _apart(options: Sequence[str]) -> Iterator[TruthServer]:
    """Server and client on a core each, where the machine has two for us."""
    mine = os.sched_getaffinity(0)
    two = {SERVER_CORE, CLIENT_CORE} <= mine
    with truth_server(*options, core=SERVER_CORE if two else None) as server:
        if two:
            os.sched_setaffinity(0, {CLIENT_CORE})  # what is started from here inherits it
        try:
            yield server
        finally:
            os.sched_setaffinity(0, mine)


def _figures(records: Sequence[Record]) -> dict[str, list[float]]:
    return {
        "first block": [v for v in map(first_block, records) if v is not None],
        "block": [gap for record in records for gap in between_blocks(record)],
        "end to end": [v for v in map(end_to_end, records) if v is not None],
    }


def _truths(entries: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    return {
        "first block": [entry["sent"][0] - entry["received"] for entry in entries],
        "block": [
            after - before
            for entry in entries
            for before, after in zip(entry["sent"], entry["sent"][1:], strict=False)
        ],
        "end to end": [entry["sent"][-1] - entry["received"] for entry in entries],
    }
