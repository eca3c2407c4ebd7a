"""A real front as a part: how it comes up, ends, and cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dgemma.supervisor.events import Alive, Ended, Event, Failed, Part, Up
from dgemma.supervisor.parts import FrontPart
from dgemma.triton_server.processes import session_members

PATIENCE_S = 60.0
ALONE = {"DGEMMA_HOST": "127.0.0.1", "NIM_HTTP_API_PORT": "0"}


@contextmanager
def front(directory: Path, **env: str) -> Iterator[FrontPart]:
    """Nothing of it may be left after the block."""
    with (directory / "log").open("wb") as log:
        part = FrontPart({**ALONE, **env}, directory, log.fileno())
        part.start()
        pid = part.pid()
        try:
            yield part
        finally:
            part.kill()
    assert pid is not None
    assert session_members(pid) == []
    assert part.pid() is None


async def told(part: FrontPart, acts: dict[int, Callable[[], None]]) -> list[Event]:
    """All that it tells; after so many events something is done to it."""
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if act := acts.get(len(events)):
            act()

    await asyncio.wait_for(part.watch(tell), PATIENCE_S)
    return events


def test_a_front_comes_up_lives_and_ends(tmp_path: Path) -> None:
    with front(tmp_path) as part:
        events = asyncio.run(told(part, {2: part.stop}))
    assert events[:2] == [Up(Part.FRONT), Alive(Part.FRONT)]
    assert events[-1] == Ended(Part.FRONT)


def test_a_front_that_stands_still_gives_no_sign_and_is_killed(tmp_path: Path) -> None:
    async def watch(part: FrontPart) -> list[Event]:
        events: list[Event] = []
        came = asyncio.Event()

        def tell(event: Event) -> None:
            events.append(event)
            came.set()

        watching = asyncio.create_task(part.watch(tell))
        await asyncio.wait_for(came.wait(), PATIENCE_S)
        pid = part.pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.3)  # what was on its way
        so_far = len(events)
        await asyncio.sleep(0.6)  # more than two signs
        assert len(events) == so_far
        part.kill()
        watching.cancel()
        return events

    with front(tmp_path) as part:
        assert asyncio.run(watch(part))[0] == Up(Part.FRONT)


@pytest.mark.parametrize(
    ("env", "for_good"), [({"DGEMMA_TRITON_URL": "nowhere"}, True), ({"PYTHONHOME": "/no"}, False)]
)
def test_a_front_that_cannot_start_has_failed(
    tmp_path: Path, env: dict[str, str], for_good: bool
) -> None:
    with front(tmp_path, **env) as part:
        [failed] = asyncio.run(told(part, {}))
    assert isinstance(failed, Failed)
    assert failed.for_good is for_good
    assert "ended with code" in failed.why
    assert (tmp_path / "log").read_bytes()
