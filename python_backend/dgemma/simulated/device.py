"""A simulated device's time: when it works, when it has nothing to do, when it waits for the host.

Knows moments; knows nothing of what a device computes. It is idle while the host works between two
passes, as a GPU is whose host does nothing meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dgemma.simulated.clock import Timekeeper


@dataclass(frozen=True)
class DeviceTime:
    """Sums of seconds since the first piece of work began."""

    busy: float = 0.0
    idle: float = 0.0  # with and without anything to do
    starved: float = 0.0  # of these: idle though there was something to do

    def __sub__(self, before: DeviceTime) -> DeviceTime:
        """What has come since."""
        return DeviceTime(
            self.busy - before.busy, self.idle - before.idle, self.starved - before.starved
        )

    @property
    def starved_share(self) -> float:
        """Of the time in which there was something to do."""
        wanted = self.busy + self.starved
        return self.starved / wanted if wanted else 0.0


class SimulatedDevice:
    """One piece of work at a time."""

    def __init__(self, clock: Timekeeper) -> None:
        self.clock = clock
        # Since when there has been something to do; without knowing better, always.
        self.wanted_since: Callable[[], float] = lambda: 0.0
        self._busy = self._idle = self._starved = 0.0
        self._free_at: float | None = None
        self._meanwhile: list[Callable[[], object]] = []

    @property
    def spent(self) -> DeviceTime:
        return DeviceTime(self._busy, self._idle, self._starved)

    def meanwhile(self, call: Callable[[], object]) -> None:
        """Have the host do something when the device has begun its next piece of work."""
        self._meanwhile.append(call)

    def run(self, seconds: Callable[[], float]) -> None:
        """Work for so long, from now on, and return when it is done.

        How long is worked out when the work has begun: that takes none of the device's time.
        """
        began = self.clock()
        taken = seconds()
        if self._free_at is not None:
            idle = max(0.0, began - self._free_at)
            self._idle += idle
            self._starved += min(idle, max(0.0, began - self.wanted_since()))
        self._busy += taken
        self._free_at = began + taken
        calls, self._meanwhile = self._meanwhile, []
        for call in calls:
            call()
        self.clock.wait_until(self._free_at)
