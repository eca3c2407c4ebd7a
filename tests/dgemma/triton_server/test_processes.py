from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgemma.triton_server.processes import kill_session, session_members

PATIENCE_S = 20.0
# Ignores what asks it to end, and has a child that does so too.
FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Family:
    """A process that leads a session, and its child."""

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", FAMILY]
        self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert self.parent.stdout is not None
        self.child = int(self.parent.stdout.readline())

    def end(self) -> None:
        for pid in (self.parent.pid, self.child):
            try:
                if os.getsid(pid) == self.parent.pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.parent.communicate()


@pytest.fixture
def family() -> Iterator[Family]:
    started = Family()
    try:
        yield started
    finally:
        started.end()


def pids(session: int) -> set[int]:
    return {member.pid for member in session_members(session)}


def test_the_members_of_a_session_are_its_leader_and_its_children(family: Family) -> None:
    members = session_members(family.parent.pid)
    assert {member.pid for member in members} == {family.parent.pid, family.child}
    python = os.path.basename(os.path.realpath(sys.executable))
    assert {member.executable for member in members} == {python}


def test_an_orphan_is_found_by_the_session_of_its_dead_parent(family: Family) -> None:
    family.parent.kill()
    family.parent.wait()
    assert pids(family.parent.pid) == {family.child}


def test_a_zombie_is_not_a_living_process(family: Family) -> None:
    family.parent.kill()
    state = Path(f"/proc/{family.parent.pid}/stat")
    wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z")
    assert pids(family.parent.pid) == {family.child}


def test_killing_a_session_ends_all_of_it_and_waits_until_it_is_gone(family: Family) -> None:
    other = Family()
    try:
        kill_session(family.parent.pid)
        assert session_members(family.parent.pid) == []
        assert pids(other.parent.pid) == {other.parent.pid, other.child}
        assert family.parent.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        other.end()


def test_killing_a_session_that_is_gone_does_nothing(family: Family) -> None:
    kill_session(family.parent.pid)
    family.parent.wait(PATIENCE_S)
    kill_session(family.parent.pid)


def test_a_process_whose_name_looks_like_the_fields_behind_it_is_read_correctly(
    tmp_path: Path,
) -> None:
    odd = tmp_path / ") S 1 1"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "600"], start_new_session=True)
    try:
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == ") S 1 1\n")
        [member] = session_members(process.pid)
        assert member.session == process.pid
    finally:
        process.kill()
        process.wait()
