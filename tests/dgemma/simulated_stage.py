"""A stage on a simulated platform, in virtual time: minutes of it are run in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

from dgemma.engine.base import Capacity, Engine
from dgemma.engine.simulated_engine import SimulatedEngine
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.platform import Platform
from dgemma.simulated.convergence import CAP
from dgemma.simulated.device import SimulatedDevice
from dgemma.simulated.tail import SimulatedTail
from dgemma.tail.tail import Denoiser
from tests.dgemma.scheduler.dice import Stage
from tests.dgemma.scheduler.fairness import Ground

GEOMETRY = named_geometry(DEFAULT)
L = GEOMETRY.canvas_length
WORDS, STOP = range(97, 123), 1


@cache
def platform_named(name: str) -> Platform:
    return Platform.named(name, GEOMETRY)


@dataclass
class SimulatedStage(Stage):
    """Slots of `context` tokens on a platform."""

    platform: str = "h100-fp8"
    context: int = 32768

    def furnish(self) -> tuple[Engine, Denoiser]:
        capacity = Capacity(self.slots, self.context, 2 * self.slots)
        self.device = SimulatedDevice(self.time)
        self.engine = SimulatedEngine(platform_named(self.platform), capacity, self.device)
        return self.engine, SimulatedTail(WORDS, STOP, L, later=self.device.meanwhile)


def ground_of(platform: str) -> Ground:
    """Passes are the longer the more context their rows have; the largest request's is a bound."""
    whole = platform_named(platform)

    def longest_pass_s(rows: int) -> float:
        return whole.pass_s([(ground.chunks + ground.canvases) * L] * rows, rows)

    stage = partial(SimulatedStage, platform=platform)
    ground = Ground(stage, L, CAP, longest_pass_s)
    return ground
