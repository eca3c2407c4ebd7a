"""What a simulated device has done, as metrics of Triton.

Knows Triton's metrics, whose module exists only inside its stub process and is passed in; knows
nothing of passes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgemma.simulated.simulation import Simulation


EVERY_S = 0.5
NAME = "dgemma_simulated_device_seconds"


class DeviceMetrics:
    """Brought up to date by a thread of its own, until `close`."""

    def __init__(self, pb_utils: Any, simulation: Simulation) -> None:
        self._device = simulation.device
        family = pb_utils.MetricFamily(
            name=NAME,
            description="Seconds of the simulated device: busy, idle, starved (idle with work)",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._family = family  # its metrics last as long as it does
        self._metrics = {
            state: family.Metric(labels={"simulated": simulation.name, "state": state})
            for state in ("busy", "idle", "starved")
        }
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(EVERY_S):
            spent = self._device.spent
            for state, metric in self._metrics.items():
                metric.set(getattr(spent, state))
