from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.front.supervised import Announced, beating, starts
from dgemma.supervisor import sign
from dgemma.supervisor.events import Ended, Event, Exit, Failed, Part, Up
from dgemma.supervisor.machine import Machine, Policy
from dgemma.supervisor.supervisor import LivedTime, Supervisor

TRITON = Part.TRITON


class FakePart:
    """Comes up at once; `script` is called at the beginning of every life, with its number."""

    def __init__(self, script: Callable[[FakePart, int], None] = lambda part, life: None) -> None:
        self.events: list[str] = []
        self.script, self.lives = script, 0
        self.tell: Callable[[Event], None] = lambda event: None
        self.error: ConfigurationError | None = None

    def start(self) -> None:
        self.events.append("start")
        if self.error is not None:
            raise self.error

    async def watch(self, tell: Callable[[Event], None]) -> None:
        self.lives, self.tell = self.lives + 1, tell
        tell(Up(TRITON))
        self.script(self, self.lives)
        await asyncio.Event().wait()

    def stop(self) -> None:
        self.events.append("stop")
        self.tell(Ended(TRITON))

    def kill(self) -> None:
        self.events.append("kill")

    def pid(self) -> int | None:
        return None


def supervise(part: FakePart, tmp_path: Path, **policy: object) -> tuple[Exit, list[str]]:
    """How it ended, and what was said."""
    said: list[str] = []
    supervisor = Supervisor(
        Machine(Policy(parts=(TRITON,), **policy)),  # type: ignore[arg-type]
        {TRITON: part},
        status=tmp_path / "status",
        on_ready=lambda: said.append("ready"),
        on_stop=lambda: said.append("stopping"),
    )
    return asyncio.run(supervisor.run()), said


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_parts(tmp_path: Path, number: int) -> None:
    part = FakePart(lambda part, life: send(number))
    assert supervise(part, tmp_path) == (Exit(0), ["ready", "stopping"])
    assert part.events == ["start", "stop", "kill"]
    status = sign.read(tmp_path / "status")
    assert status is not None and status.words == "the service is stopping"


def test_a_part_that_fails_is_started_again(tmp_path: Path) -> None:
    def die_once(part: FakePart, life: int) -> None:
        if life == 1:
            part.tell(Failed(TRITON, "it has died"))
            part.tell(Failed(TRITON, "of the life before"))
        else:
            send(signal.SIGTERM)

    part = FakePart(die_once)
    assert supervise(part, tmp_path) == (Exit(0), ["ready", "ready", "stopping"])
    assert part.events == ["start", "kill", "start", "stop", "kill"]
    assert starts(tmp_path) == {"triton": 2}


def test_a_second_signal_cuts_the_stop_short(tmp_path: Path) -> None:
    part = FakePart(lambda part, life: send(signal.SIGTERM))
    part.stop = lambda: send(signal.SIGINT)  # type: ignore[method-assign]
    ended, _ = supervise(part, tmp_path)
    assert ended == Exit(130, "interrupted while it was stopping")


def test_a_part_that_cannot_be_configured_ends_the_service(tmp_path: Path) -> None:
    part = FakePart()
    part.error = ConfigurationError("NIM_MODEL_PATH: no such directory")
    assert supervise(part, tmp_path) == (Exit(2, "NIM_MODEL_PATH: no such directory"), [])


def test_a_watch_that_breaks_is_a_failure(tmp_path: Path) -> None:
    def broken(part: FakePart, life: int) -> None:
        raise OSError("no more files")

    ended, _ = supervise(FakePart(broken), tmp_path, restart=False)
    assert ended.code == 1
    assert "no more files" in ended.why


def test_a_stop_of_the_whole_machine_is_not_lived_through() -> None:
    times = iter([100.0, 100.25, 700.0, 700.5])
    lived = LivedTime(lambda: next(times))
    assert [lived() for _ in range(3)] == [0.25, 1.25, 1.75]


# Signs


class Reachable:
    """A model server, or none."""

    def __init__(self, reachable: bool = True) -> None:
        self._reachable = reachable

    def reachable(self) -> bool:
        return self._reachable


def trouble_of(readiness: Announced, reachable: bool = True) -> str | None:
    return asyncio.run(readiness.trouble(Reachable(reachable)))  # type: ignore[arg-type]


def test_the_front_is_as_ready_as_was_announced(tmp_path: Path) -> None:
    readiness, path = Announced(tmp_path), tmp_path / sign.STATUS

    def trouble() -> str | None:
        return trouble_of(readiness)

    assert trouble() == "the supervisor does not answer"
    sign.give(path, "the model server is starting")
    assert trouble() == "the model server is starting"
    sign.give(path)
    assert trouble() is None
    assert trouble_of(readiness, reachable=False) == "the model server cannot be reached yet"
    readiness.close("the front is stopping")
    assert trouble() == "the front is stopping"


def test_an_old_announcement_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign.give(tmp_path / sign.STATUS)
    monkeypatch.setattr("dgemma.front.supervised._STALE_S", -1.0)
    assert trouble_of(Announced(tmp_path)) == "the supervisor does not answer"


def test_what_is_no_sign_is_none(tmp_path: Path) -> None:
    path = tmp_path / "sign"
    assert sign.read(path) is None
    path.write_text("1.0 words")
    assert sign.read(path) is None
    path.unlink()
    path.symlink_to("words")
    assert sign.read(path) is None


def test_signs_need_no_room(tmp_path: Path) -> None:
    path = tmp_path / "sign"
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # as if every disk were full
    try:
        for words in ("the model server does not answer", ""):
            sign.give(path, words)
            found = sign.read(path)
            assert found is not None and found.words == words
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


def test_a_front_shows_that_it_goes_on(tmp_path: Path) -> None:
    async def seen() -> int:
        found: set[sign.Sign] = set()
        async with beating(tmp_path), asyncio.timeout(20):
            while len(found) < 2:
                if (latest := sign.read(tmp_path / sign.FRONT)) is not None:
                    found.add(latest)
                await asyncio.sleep(0.01)
        return len(found)

    assert asyncio.run(seen()) == 2


# Orphans

_LEAVES_AN_ORPHAN = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
                         stdin=int(sys.argv[1]), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
os._exit(0)
"""
_SUPERVISES = """
import os, subprocess, sys, time
from pathlib import Path
from dgemma.supervisor import orphans
orphans.adopt()
held = subprocess.Popen([sys.executable, "-S", "-c", ""])
os.waitid(os.P_PID, held.pid, os.WEXITED | os.WNOWAIT)
reading, writing = os.pipe()
parent = subprocess.run([sys.executable, "-c", sys.argv[1], str(reading)], pass_fds=[reading],
                        stdout=subprocess.PIPE, check=True, text=True)
orphan = int(parent.stdout)
os.close(writing)
os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
orphans.bury([held.pid])
assert held.wait() == 0
orphans.bury([])
print(Path(f"/proc/{orphan}").exists())
"""


def test_orphans_are_adopted_and_buried_but_not_those_that_others_wait_for() -> None:
    command = [sys.executable, "-c", _SUPERVISES, _LEAVES_AN_ORPHAN]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("False\n", "", 0)
