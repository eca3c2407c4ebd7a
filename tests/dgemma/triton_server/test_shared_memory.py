from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dgemma.triton_server import shared_memory
from dgemma.triton_server.shared_memory import PREFIX, remove, remove_stale

# Says that it holds the file, and goes on doing so until its standard input is closed.
HOLD = {
    "mapped": """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
print("held", flush=True)
sys.stdin.read()
""",
    "opened": """
import sys
held = open(sys.argv[1], "r+b")
print("held", flush=True)
sys.stdin.read()
""",
}


def region(directory: Path, name: str) -> Path:
    path = directory / (PREFIX + name)
    path.write_bytes(b"\0" * 4096)
    return path


@contextmanager
def holding(path: Path, how: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD[how], str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.kill()
        process.communicate()


def test_what_nobody_holds_is_removed(tmp_path: Path) -> None:
    stale = [region(tmp_path, name) for name in "ab"]
    assert sorted(remove_stale(tmp_path)) == stale
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", HOLD)
def test_what_a_living_process_holds_is_kept_until_it_has_ended(tmp_path: Path, how: str) -> None:
    held, stale = region(tmp_path, "held"), region(tmp_path, "stale")
    with holding(held, how):
        assert remove_stale(tmp_path) == [stale]
        assert held.exists()
    assert remove_stale(tmp_path) == [held]


def test_what_is_not_triton_s_is_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "somebody_else"
    other.write_text("")
    assert remove_stale(tmp_path) == []
    assert other.exists()


def test_regions_of_other_users_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = region(tmp_path, "theirs")
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    assert remove_stale(tmp_path) == []
    assert theirs.exists()


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    assert remove_stale(tmp_path) == []


def test_removing_takes_the_prefix_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "DIRECTORY", tmp_path)
    kept = region(tmp_path, "other_0")
    for number in range(3):
        region(tmp_path, f"mine_{number}")
    remove(f"{PREFIX}mine_")
    assert list(tmp_path.iterdir()) == [kept]
    remove(f"{PREFIX}mine_")  # nothing is left to remove


def test_the_directory_is_the_one_of_the_system() -> None:
    assert Path("/dev/shm") == shared_memory.DIRECTORY
