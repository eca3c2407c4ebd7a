"""A quota that refills all the time: reserved before it is used, settled afterwards.

Knows amounts and seconds; knows nothing of who has it or what for.
"""

from __future__ import annotations

_NOTHING = 1e-6  # of a token; what sums of fractions may be off by


class TokenBucket:
    """Holds at most one minute's worth. It may be overdrawn when more was used than reserved."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level, self._at = float(per_minute), now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much can be reserved; 0 where it can be now."""
        missing = amount - self._refill(now)
        return max(0.0, missing) / self.per_minute * 60.0 if missing > _NOTHING else 0.0

    def take(self, amount: float, now: float) -> None:
        self._level = self._refill(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """What was reserved and not used; negative where more was."""
        self.take(-amount, now)

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit holds from now on, for what has been used lately as well."""
        used = self.per_minute - self._refill(now)
        self.per_minute, self._level = per_minute, per_minute - used

    def _refill(self, now: float) -> float:
        refilled = self._level + (now - self._at) * self.per_minute / 60.0
        self._level, self._at = min(float(self.per_minute), refilled), now
        return self._level
