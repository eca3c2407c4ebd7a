"""How long passes and canvases have taken lately, and so what to expect of the next ones.

Knows nothing of requests. What has not been seen yet is expected to cost no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]  # seconds, from any beginning

_RECENT = 0.05  # weight of the latest of many passes or canvases


class Pace:
    """Averages in which the last twenty or so count."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.pass_s = self.total_s = 0.0  # of a pass lately; of all passes
        self._steps: float | None = None

    def passed(self, seconds: float) -> None:
        """A pass has taken this long."""
        self.total_s += seconds
        self.pass_s += (seconds - self.pass_s) * (_RECENT if self.pass_s else 1.0)

    def denoised(self, steps: int) -> None:
        """A canvas has needed this many steps."""
        before = steps if self._steps is None else self._steps
        self._steps = before + (steps - before) * _RECENT

    @property
    def canvas_s(self) -> float:
        """Seconds that a canvas takes."""
        return self.pass_s * (self._steps or 0.0)

    def steps(self, most: int) -> float:
        """Denoise steps to expect of a canvas that may have `most`."""
        return most if self._steps is None else min(most, self._steps)
