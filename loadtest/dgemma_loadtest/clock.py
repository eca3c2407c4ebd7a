"""The time of a run: seconds since its epoch, by the monotonic clock, and waking up on time.

asyncio's own timers have a grain of a millisecond, which is a tenth of what a fast service takes;
a timer of the kernel wakes its loop within some tens of microseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import os
import time

_CLOCK_MONOTONIC, _NONBLOCK, _CLOEXEC, _ABSOLUTE = 1, os.O_NONBLOCK, os.O_CLOEXEC, 1


class Clock:
    """`now` begins at 0 at the epoch, a Unix time that several processes may share."""

    def __init__(self, epoch_unix: float | None = None) -> None:
        unix, monotonic = time.time(), time.monotonic()
        self.epoch_unix = unix if epoch_unix is None else epoch_unix
        self._origin = monotonic - (unix - self.epoch_unix)
        self._alarm: Alarm | None = None

    def now(self) -> float:
        return time.monotonic() - self._origin

    async def until(self, at_s: float) -> None:
        """Sleep until then; give way once even where that is over. One loop alone may use it."""
        if at_s <= self.now():
            await asyncio.sleep(0)
            return
        if self._alarm is None:
            self._alarm = Alarm()
        await self._alarm.at(at_s + self._origin)


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


class Alarm:
    """Any number of sleepers of one loop on one timer of the kernel (timerfd)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        asyncio.get_running_loop().add_reader(self._timer, self._ring)

    async def at(self, monotonic_s: float) -> None:
        """Sleep until then."""
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (monotonic_s, next(self._order), sleeper))
        if self._sleepers[0][2] is sleeper:
            self._set(monotonic_s)
        await sleeper

    def _ring(self) -> None:
        os.read(self._timer, 8)
        now = time.monotonic()
        while self._sleepers and (self._sleepers[0][0] <= now or self._sleepers[0][2].done()):
            sleeper = heapq.heappop(self._sleepers)[2]
            if not sleeper.done():
                sleeper.set_result(None)
        if self._sleepers:
            self._set(self._sleepers[0][0])

    def _set(self, monotonic_s: float) -> None:
        """To ring then, or at once where that is over."""
        nanoseconds = max(1, int(monotonic_s * 1e9))
        value = _Time(*divmod(nanoseconds, 1_000_000_000))
        setting = _Setting(_Time(0, 0), value)
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
