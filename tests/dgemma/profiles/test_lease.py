"""Who holds a file: between processes of one host, and between hosts that share a directory."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.profiles import lease
from dgemma.profiles.lease import Owner, held, holder

ELSEWHERE = Owner("another-node", 7, "2026-11-28 20:00:00")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_AFTER_S", 0.5)
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    monkeypatch.setattr(lease, "_CHECK_EVERY_S", 0.02)


def write(path: Path, owner: Owner) -> None:
    """As a host whose advisory locks are not seen here."""
    with path.open("a+b") as file:
        owner.write(file.fileno())


@contextmanager
def alive_elsewhere(path: Path) -> Iterator[threading.Event]:
    """Another host's process, which beats until it is told to stop, or says nothing any more."""
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(0.05):
            count += 1
            write(path, Owner(ELSEWHERE.host, ELSEWHERE.pid, ELSEWHERE.since, count))

    write(path, ELSEWHERE)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def never(owner: str) -> None:
    pytest.fail(f"waits for {owner}")


def test_a_holder_says_who_it_is_and_that_it_lives(tmp_path: Path) -> None:
    path = tmp_path / "engine.lock"
    with held(path, never):
        assert str(os.getpid()) in str(holder(path))
        first = json.loads(path.read_text())["beat"]
        deadline = time.monotonic() + 20
        while json.loads(path.read_text() or '{"beat": 0}')["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == [] and holder(path) is None


def test_one_of_another_host_is_waited_for_as_long_as_it_lives(tmp_path: Path) -> None:
    path = tmp_path / "engine.lock"
    told: list[str] = []
    with alive_elsewhere(path) as over:
        assert "process 7 on another-node" in str(holder(path))
        began = time.monotonic()

        def waiting(owner: str) -> None:
            told.append(owner)
            threading.Timer(0.8, over.set).start()  # longer than a silent one is waited for

        with held(path, waiting):
            assert time.monotonic() - began > 0.8 + 0.4
    assert len(told) == 1 and "another-node" in told[0]


def test_of_several_who_wait_for_one_that_is_silent_one_gets_it_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "engine.lock"
    write(path, ELSEWHERE)
    inside: list[int] = []
    most: list[int] = []

    def take(number: int) -> None:
        with held(path, lambda owner: None):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1, 1, 1, 1] and list(tmp_path.iterdir()) == []


def test_whoever_was_taken_for_gone_is_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "engine.lock"
    with pytest.raises(ConfigurationError, match="taken over"), held(path, never):
        path.unlink()
        write(path, ELSEWHERE)
    assert json.loads(path.read_text())["host"] == "another-node", "the other's file stays"


def test_a_file_that_says_nothing_is_waited_for_and_then_taken(tmp_path: Path) -> None:
    path = tmp_path / "engine.lock"
    path.write_text("{")
    told: list[str] = []
    began = time.monotonic()
    with held(path, told.append):
        assert time.monotonic() - began > 0.5
    assert told == ["a process that has not said which it is"]
