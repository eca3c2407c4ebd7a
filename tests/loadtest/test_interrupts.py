"""Ctrl-C, and a generator that is killed: what was measured is kept and summed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dgemma_loadtest import driver, recording, run_file
from dgemma_loadtest.metrics.summary import from_json
from dgemma_loadtest.records import Outcome
from tests.loadtest.server import TruthServer

SCENARIO = """
schema: 1
name: long
stages:
  - {name: first, duration_s: 60, loads: [{users: 3}, {tenant: slow, users: 2, think_s: 0.1}]}
  - {name: never, duration_s: 60, loads: [{users: 1}]}
"""
PATIENCE_S = 20.0


@contextmanager
def running(server: TruthServer, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on for a minute, in a process group of its own, as from a shell."""
    (directory / "long.yaml").write_text(SCENARIO)
    command = [sys.executable, "-m", "dgemma_loadtest.cli", "run", "--fit", "off"]
    command += ["--scenario", str(directory / "long.yaml"), "--target", server.grpc]
    process = subprocess.Popen(
        [*command, "--out", str(directory / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Also where whoever has adopted it does not look after it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def lines(directory: Path) -> int:
    path = directory / "out" / recording.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_what_was_measured_is_kept(server: TruthServer, tmp_path: Path) -> None:
    with running(server, tmp_path) as process:
        until(lambda: lines(tmp_path) > 20)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 3 * ("SPOILED" in out)
        assert "interrupted" in out and "first" in out
    run, records = run_file.read(tmp_path / "out"), recording.read(tmp_path / "out")
    assert run.state == "interrupted" and [s.name for s in run.stages] == ["first"]
    assert run.stages[0].ended_by == "interrupt" and run.stages[0].arrivals_end_s < 30
    cut = [record for record in records if record.outcome is Outcome.UNFINISHED]
    assert len(cut) <= 5 and len(records) - len(cut) > 20
    assert sum(r.outcome is Outcome.OK for r in records) == len(records) - len(cut)
    found = from_json((tmp_path / "out" / driver.SUMMARY).read_bytes())
    assert found.state == "interrupted"
    assert found.stages[0].groups[0].requests == len(records)


def test_a_generator_that_is_killed_leaves_its_records(server: TruthServer, tmp_path: Path) -> None:
    with running(server, tmp_path) as process:
        until(lambda: lines(tmp_path) > 20)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
    assert run_file.read(tmp_path / "out").state == "failed"
    found = from_json((tmp_path / "out" / driver.SUMMARY).read_bytes())
    assert found.stages[0].groups[0].outcomes["ok"] > 15


def test_a_generator_whose_parent_is_killed_ends(server: TruthServer, tmp_path: Path) -> None:
    with running(server, tmp_path) as process:
        until(lambda: lines(tmp_path) > 5)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        until(lambda: has_ended(int(child)))
    assert run_file.read(tmp_path / "out").state == "interrupted"


def test_a_generator_that_was_held_up_says_so(server: TruthServer, tmp_path: Path) -> None:
    """Stopped for 0.6 s, as by a busy machine: that its timers were late is said."""
    with running(server, tmp_path) as process:
        until(lambda: lines(tmp_path) > 20)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGSTOP)
        time.sleep(0.6)  # this is how long it is held up
        os.kill(int(child), signal.SIGCONT)
        before = lines(tmp_path)
        until(lambda: lines(tmp_path) > before + 5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    run = run_file.read(tmp_path / "out")
    assert run.client is not None and run.client.loop_lag_max_s > 0.4
