"""A scenario's stages, one after the other, against a target.

Knows when stages begin, end and drain, and when a sweep has gone far enough; a request's course is
`exchange`'s, a load's rhythm `loops`'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from dgemma_loadtest.generator.loops import Sending
from dgemma_loadtest.generator.sources import Supplies, sources_of
from dgemma_loadtest.loads import Load
from dgemma_loadtest.records import Outcome, Record
from dgemma_loadtest.run_file import StageWindow
from dgemma_loadtest.scenario import Scenario, Stage
from dgemma_loadtest.targets.base import Connection

EndedBy = Literal["time", "requests", "knee", "interrupt"]
CUT_S = 5.0  # for requests that are cut off to say so


def keeps_up(
    requests: Sequence[tuple[float, float | None]], from_s: float, to_s: float, share: float
) -> bool:
    """Whether as much is completed between the two times as is due then, or that share of it.

    `requests`: when each was due, and when it was completed, if it was.
    """
    due = sum(from_s <= at_s < to_s for at_s, _ in requests)
    done = sum(end_s is not None and from_s <= end_s < to_s for _, end_s in requests)
    return done >= share * due


class Conductor:
    """Runs stages; `keep` has every record, `windows` what is known of stages so far."""

    def __init__(
        self,
        scenario: Scenario,
        supplies: Supplies,
        keep: Callable[[Record], None],
        announce: Callable[[tuple[StageWindow, ...]], None],
    ) -> None:
        self._stages, self._sweep = scenario.expanded().stages, scenario.sweep
        self._supplies, self._keep, self._announce = supplies, keep, announce
        self.stop = asyncio.Event()  # set: end at once, keeping what there is
        self.windows: tuple[StageWindow, ...] = ()
        self.sending: Sending | None = None  # of the stage that runs

    @property
    def stages(self) -> int:
        """How many there are to be."""
        return len(self._stages)

    async def run(self) -> None:
        for number, stage in enumerate(self._stages):
            if self.stop.is_set():
                return
            kept_up = await self._stage(number, stage)
            if self._sweep is not None and self._sweep.until_knee and not kept_up:
                self._change(ended_by="knee")
                return

    async def _stage(self, number: int, stage: Stage) -> bool:
        """Whether the server kept up."""
        lines = [await self._connect(load) for load in stage.loads]
        clock, ends = self._supplies.clock, list[tuple[float, float | None]]()

        def keep(record: Record) -> None:
            ok = record.outcome is Outcome.OK
            ends.append((record.scheduled_s, record.ended_s if ok else None))
            self._keep(record)

        self.sending = sending = Sending(clock, keep, stage.requests)
        begins_s = round(clock.now(), 6)  # as records are, or the first would come before it
        ends_s = begins_s + stage.duration_s
        self._begin(stage, begins_s)
        sources = [
            task
            for place, (load, connections) in enumerate(zip(stage.loads, lines, strict=True))
            for task in sources_of(
                stage, (number, place), load, connections, self._supplies, sending, begins_s
            )
        ]
        ended_by = await self._until_over(sources, ends_s)
        arrivals_end_s = min(clock.now(), ends_s)
        drain_s = 0.0 if ended_by == "interrupt" else stage.drain_s
        await self._finish(sources, sending, drain_s)
        for connection in (each for line in lines for each in line):
            await connection.close()
        if self.stop.is_set():
            ended_by = "interrupt"
        self._change(arrivals_end_s=arrivals_end_s, ended_s=clock.now(), ended_by=ended_by)
        half_s = (begins_s + ends_s) / 2
        return self._sweep is None or keeps_up(ends, half_s, ends_s, self._sweep.knee_share)

    async def _connect(self, load: Load) -> list[Connection]:
        count = load.users if load.users is not None else load.connections
        return await self._supplies.target(load.tenant).connect(count)

    async def _until_over(self, sources: list[asyncio.Task[None]], ends_s: float) -> EndedBy:
        """Wait for the stage's time, its last request, or `stop`. Raises what a source raised."""
        stopped = asyncio.create_task(self.stop.wait())
        waiting: set[asyncio.Task[None]] = set(sources)
        try:
            while waiting:
                left_s = ends_s - self._supplies.clock.now()
                done, _ = await asyncio.wait(
                    {*waiting, stopped},
                    timeout=max(0.0, left_s),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done & waiting:
                    task.result()
                    waiting.discard(task)
                if stopped in done:
                    return "interrupt"
                if not done:
                    return "time"
            sending = self.sending
            spent = sending is not None and sending.budget is not None
            return "requests" if spent and sending and sending.sent == sending.budget else "time"
        finally:
            stopped.cancel()

    async def _finish(
        self, sources: list[asyncio.Task[None]], sending: Sending, drain_s: float
    ) -> None:
        """No more requests; those that are open may end, or are cut off."""
        for task in sources:
            task.cancel()
        await asyncio.gather(*sources, return_exceptions=True)
        if sending.open and drain_s:
            drained = asyncio.create_task(asyncio.wait(set(sending.open)))
            await self._unless_stopped(drained, drain_s)
            drained.cancel()
        rest = set(sending.open)
        for each in rest:
            each.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CUT_S)

    async def _unless_stopped(self, work: asyncio.Task[Any], seconds: float) -> None:
        """Until the work is done, the time is over, or `stop`."""
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait({work, stopped}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    def _begin(self, stage: Stage, begins_s: float) -> None:
        offered = {load.label: load.offered for load in stage.loads}
        ends_s = begins_s + stage.duration_s
        window = StageWindow(
            stage.name, begins_s, begins_s + stage.warmup_s, ends_s, ends_s, offered=offered
        )
        self.windows = (*self.windows, window)
        self._announce(self.windows)

    def _change(
        self,
        *,
        ended_by: EndedBy,
        arrivals_end_s: float | None = None,
        ended_s: float | None = None,
    ) -> None:
        last = self.windows[-1]
        last = replace(
            last,
            ended_by=ended_by,
            arrivals_end_s=last.arrivals_end_s if arrivals_end_s is None else arrivals_end_s,
            ended_s=last.ended_s if ended_s is None else ended_s,
        )
        self.windows = (*self.windows[:-1], last)
        self._announce(self.windows)
