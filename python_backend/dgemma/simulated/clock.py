"""Waiting for a moment: in real time as exactly as a host can, in virtual time at once.

Knows clocks; knows nothing of what happens meanwhile.
"""

from __future__ import annotations

import time
from typing import Protocol

# A sleeping thread is woken a little late; for the rest of the time the clock is watched.
WATCHED_S = 0.0004


class Timekeeper(Protocol):
    """A clock, in seconds from any beginning, that can be waited for."""

    def __call__(self) -> float: ...
    def wait_until(self, moment: float) -> None: ...


class WallClock:
    """Real time."""

    def __call__(self) -> float:
        return time.monotonic()

    def wait_until(self, moment: float) -> None:
        if (left := moment - time.monotonic() - WATCHED_S) > 0:
            time.sleep(left)
        while time.monotonic() < moment:
            pass


class VirtualClock:
    """Time that passes only when somebody waits."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait_until(self, moment: float) -> None:
        self.now = max(self.now, moment)
