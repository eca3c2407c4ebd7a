"""Time that passes only when a pass runs, and an engine that makes it pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dgemma.engine.base import Row
from dgemma.scheduler.options import Options
from dgemma.scheduler.pace import Pace
from dgemma.simulated.clock import VirtualClock
from tests.dgemma.engine.fake_engine import FakeEngine
from tests.dgemma.scheduler.requests import Desk

PASS_S, ROW_S = 0.010, 0.001  # what a pass takes, and each row of it


class Time(VirtualClock):
    """A clock that is also moved by hand."""


class TimedEngine(FakeEngine):
    """Passes take time by the number of their rows."""

    def __init__(self, time: Time, slots: int, **more: Any) -> None:
        super().__init__(slots, **more)
        self.time = time

    def forward(self, rows: Sequence[Row]) -> Tensor:
        hidden = super().forward(rows)
        self.time.now += PASS_S + ROW_S * len(rows)
        return hidden


def timed_desk(slots: int = 4, options: Options | None = None, **engine: Any) -> tuple[Desk, Time]:
    time = Time()
    return Desk.of(TimedEngine(time, slots, **engine), options, Pace(time)), time
