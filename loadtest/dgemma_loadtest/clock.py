"""The time of a run: seconds since its epoch, by the monotonic clock."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """`now` begins at 0 at the epoch, a Unix time that several processes may share."""

    def __init__(self, epoch_unix: float | None = None) -> None:
        unix, monotonic = time.time(), time.monotonic()
        self.epoch_unix = unix if epoch_unix is None else epoch_unix
        self._origin = monotonic - (unix - self.epoch_unix)

    def now(self) -> float:
        return time.monotonic() - self._origin

    async def until(self, at_s: float) -> None:
        """Sleep until then; give way once even where that is over."""
        await asyncio.sleep(max(0.0, at_s - self.now()))
