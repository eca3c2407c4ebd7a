"""What the front and its supervisor tell each other.

Knows the signs that both leave; knows nothing of how the supervisor finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from dgemma.front.answers import Asks
from dgemma.supervisor import sign

BEAT_S = 0.25
_STALE_S = 1.5  # the supervisor speaks several times a second


class Announced:
    """Readiness as the supervisor has announced it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / sign.STATUS
        self._closed: str | None = None

    def answered(self) -> None:
        """The supervisor asks for itself."""

    def close(self, reason: str) -> None:
        """From now on it is not ready."""
        self._closed = reason

    async def trouble(self, service: Asks) -> str | None:
        """Why it is not ready; None where it is."""
        if self._closed is not None:
            return self._closed
        status = sign.read(self._path)
        if status is None or status.age_s > _STALE_S:
            return "the supervisor does not answer"
        if status.words:
            return status.words
        # The supervisor has a connection of its own, and may be faster.
        return None if service.reachable() else "the model server cannot be reached yet"


def starts(directory: Path | None) -> dict[str, int]:
    """How often each part has been started; nothing where there is no supervisor."""
    found = None if directory is None else sign.read(directory / sign.STARTS)
    pairs = (word.partition("=") for word in (found.words.split() if found else ()))
    return {part: int(count) for part, _, count in pairs if count.isdigit()}


@asynccontextmanager
async def beating(directory: Path | None) -> AsyncIterator[None]:
    """Inside the block the supervisor sees that this event loop goes on."""
    if directory is None:
        yield
        return
    beat = asyncio.create_task(_beat(directory / sign.FRONT))
    try:
        yield
    finally:
        beat.cancel()
        with suppress(asyncio.CancelledError):
            await beat


async def _beat(path: Path) -> None:
    while True:
        with suppress(OSError):  # a full disk; or the supervisor has ended, and so shall we
            sign.give(path)
        await asyncio.sleep(BEAT_S)
