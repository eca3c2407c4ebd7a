"""From values to places on an axis, and where its ticks are.

Knows numbers; knows nothing of how an axis looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_DECADE_STEPS = (
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 2, 5),
    (1, 3),
    (1,),
)  # of a decade, the more the fewer decades there are
_WIDE_DECADES = 4  # between ticks where there are very many


@dataclass(frozen=True)
class Scale:
    """`low` and `high` are at the ends of the axis; both above 0 where it is logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value: 0 at the low end, 1 at the high one."""
        if self.log:
            value = max(value, self.low * 1e-3)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 6) -> list[float]:
        return self._decades(wanted) if self.log else self._even(wanted)

    def _even(self, wanted: int) -> list[float]:
        rough = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * s for s in _STEPS if power * s >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _decades(self, wanted: int) -> list[float]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in _DECADE_STEPS:
            found = [s * 10.0**power for power in range(low, high + 1) for s in steps]
            found = [v for v in found if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
            if len(found) <= wanted + 2:
                return found
        return found[:: max(1, len(found) // _WIDE_DECADES)]


def linear(values: Iterable[float], *, zero: bool = True) -> Scale:
    """Around all values, with room above; from 0 where `zero`."""
    seen = [v for v in values if math.isfinite(v)]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    low = min(0.0, low) if zero else low
    if high <= low:
        high = low + (abs(low) or 1.0)
    return Scale(low, high + 0.06 * (high - low))


def logarithmic(values: Iterable[float]) -> Scale:
    """Around all values above 0, a little wider."""
    seen = [v for v in values if math.isfinite(v) and v > 0]
    low, high = (min(seen), max(seen)) if seen else (0.1, 10.0)
    if high / low < 2:
        low, high = low / 1.5, high * 1.5
    room = (high / low) ** 0.04
    return Scale(low / room, high * room, log=True)
