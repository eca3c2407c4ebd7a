from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError, ResourceExhausted
from dgemma.scheduler.events import Finished
from dgemma.tenants import ledger as module
from dgemma.tenants.days import DayFile, Days
from dgemma.tenants.ledger import Ledger
from dgemma.tenants.usage import Totals
from tests.dgemma.hand_made import USAGE, finished

PATIENCE_S = 20.0
DAY = date(2026, 11, 25)
SUM = Totals(1, 0, 0, 3, 4, 8)


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 25, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "ledger"
    for _ in range(3):
        ledger = Ledger(directory)
        ledger.record("acme", finished())
        ledger.record("b", Finished("error", USAGE, ResourceExhausted("full", 1.0)))
        ledger.close()
    assert Days(directory).usage() == {"acme": SUM + SUM + SUM, "b": Totals(3, 3, 0, 0, 0, 24)}


def test_records_are_written_while_the_server_runs_and_made_sure_of_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYNC_EVERY_S", 0.01)
    synced = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: synced.set())
    ledger = Ledger(tmp_path)
    ledger.record("acme", finished())
    assert eventually(lambda: Days(tmp_path).usage() == {"acme": SUM})
    synced.clear()
    ledger.record("acme", finished())
    assert synced.wait(PATIENCE_S)
    ledger.close()


def test_records_of_several_threads_are_all_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    threads = [
        threading.Thread(target=lambda: [ledger.record("acme", finished()) for _ in range(200)])
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert Days(tmp_path).usage()["acme"].requests == 1000


def test_recording_never_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()
    append = DayFile.append

    def hang(self: DayFile, entries: object) -> None:
        stuck.set()
        assert release.wait(PATIENCE_S)
        append(self, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(DayFile, "append", hang)
    ledger = Ledger(tmp_path)
    ledger.record("acme", finished())
    assert stuck.wait(PATIENCE_S)
    for _ in range(1000):
        ledger.record("acme", finished())
    release.set()
    ledger.close()
    assert Days(tmp_path).usage()["acme"].requests == 1001


KILLED = """
import sys, time
from pathlib import Path
from dgemma.tenants.ledger import Ledger
from tests.dgemma.hand_made import finished
ledger = Ledger(Path(sys.argv[1]))
for number in range(50):
    ledger.record("acme", finished())
print("recorded", flush=True)
time.sleep(60)
"""


def test_a_server_that_is_killed_loses_nothing_that_was_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"recorded\n"
        assert eventually(lambda: Days(tmp_path).usage() == {"acme": sum([SUM] * 49, SUM)})
        process.send_signal(signal.SIGKILL)
    ledger = Ledger(tmp_path)
    ledger.record("acme", finished())
    ledger.close()
    assert Days(tmp_path).usage()["acme"].requests == 51


def test_who_floods_the_service_does_not_fill_the_disk(tmp_path: Path) -> None:
    untouched = replace(USAGE, completion_tokens=0, denoising_steps=(), passes=0, service_units=0)
    rejected = Finished("error", untouched, ResourceExhausted("full", 1.0))
    ledger = Ledger(tmp_path)
    for number in range(2000):
        ledger.record(f"tenant-{number % 2}", rejected)
    ledger.record("acme", finished())
    ledger.close()
    [records] = tmp_path.glob("*.jsonl")
    assert len(records.read_text().splitlines()) <= 20
    flood = Totals(requests=1000, rejected=1000)
    assert Days(tmp_path).usage() == {"acme": SUM, "tenant-0": flood, "tenant-1": flood}


# Days


def test_a_day_that_is_over_is_summed_while_the_server_runs(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(tmp_path, clock)
    for hours in (0, 11, 12, 13):
        clock.now = datetime(2026, 11, 25, 12, tzinfo=UTC) + timedelta(hours=hours)
        ledger.record("acme", finished())
    ledger.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"2026-11-25.totals.json", "2026-11-26.jsonl", "lock"}
    days = Days(tmp_path)
    assert days.usage()["acme"].requests == 4
    assert days.usage(DAY + timedelta(days=1))["acme"].requests == 2


def test_days_that_ended_while_no_server_ran_are_summed_at_the_start(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(3):
        ledger = Ledger(tmp_path, clock)
        ledger.record("acme", finished())
        ledger.close()
        clock.now += timedelta(days=2)
    Ledger(tmp_path, clock).close()
    assert len(list(tmp_path.glob("*.totals.json"))) == 3
    assert Days(tmp_path).usage() == {"acme": SUM + SUM + SUM}


def test_a_clock_that_is_put_back_loses_and_doubles_nothing(tmp_path: Path) -> None:
    clock = Clock()
    for days in (2, -2, 1):
        clock.now += timedelta(days=days)
        ledger = Ledger(tmp_path, clock)
        ledger.record("acme", finished())
        clock.now -= timedelta(days=1)
        ledger.record("acme", finished())
        ledger.close()
    assert Days(tmp_path).usage()["acme"].requests == 6


# What goes wrong


def test_a_full_disk_stops_nothing_and_is_made_good_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SYNC_EVERY_S", 0.002)
    ledger = Ledger(tmp_path)
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(DayFile, "append", full)
        ledger.record("acme", finished())
        assert eventually(lambda: "No space left on device" in caplog.text)
        ledger.record("acme", finished())
        time.sleep(0.02)  # ten tries
        assert len(caplog.records) == 1
    assert eventually(lambda: Days(tmp_path).usage() == {"acme": SUM + SUM})
    ledger.close()


def test_records_that_can_never_be_written_are_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 3)

    def gone(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(DayFile, "append", gone)
    ledger = Ledger(tmp_path)
    for _ in range(10):
        ledger.record("acme", finished())
    ledger.close()
    lost = [int(r.getMessage().split()[0]) for r in caplog.records if "are lost" in r.getMessage()]
    assert sum(lost) == 10


def test_two_servers_do_not_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(ConfigurationError, match=f"DGEMMA_LEDGER: {tmp_path} is in use by anothe"):
        Ledger(tmp_path)
    ledger.close()
    Ledger(tmp_path).close()


def test_a_place_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"DGEMMA_LEDGER: .* cannot be written: .*; give"):
        Ledger(tmp_path / "file")


def test_close_ends_the_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    ledger = Ledger(tmp_path)
    assert set(threading.enumerate()) > before
    ledger.close()
    assert set(threading.enumerate()) == before
