"""What is simulated, and what its device has done so far, in words."""

from __future__ import annotations

from dataclasses import dataclass

from dgemma.roofline.platform import Platform
from dgemma.simulated.device import SimulatedDevice


@dataclass(frozen=True)
class Simulation:
    """A platform and its device."""

    platform: Platform
    device: SimulatedDevice

    @property
    def name(self) -> str:
        return self.platform.name

    def describe(self, slots: int, context: int) -> str:
        """What its answers are worth, and how long passes take."""
        platform = self.platform
        one, every = (1e3 * platform.pass_s([0] * rows, rows) for rows in (1, slots))
        return (
            f"simulated {self.name}: nothing is computed and answers mean nothing; a pass takes "
            f"{platform.rule} of {platform.gpu.name}: {one:.1f} ms with one "
            f"canvas, {every:.1f} ms with {slots}; {slots} slots × {context} tokens"
        )

    def report(self) -> str:
        spent = self.device.spent
        return (
            f"simulated {self.name}: the device worked {spent.busy:.2f} s and was idle for "
            f"{spent.starved:.3f} s while work was queued, {spent.starved_share:.2%} of both"
        )
