"""The loops of one load of one stage, and what all of them draw on.

Knows seeds and names, so that the same seed gives the same requests; when a stage begins and ends
is the conductor's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from dgemma_loadtest.clock import Clock
from dgemma_loadtest.fit import Fit
from dgemma_loadtest.generator.exchange import Place
from dgemma_loadtest.generator.loops import Sending, closed_loop, open_loop
from dgemma_loadtest.jobs import JobSource, stream
from dgemma_loadtest.loads import Load
from dgemma_loadtest.prompts import Library
from dgemma_loadtest.scenario import Stage
from dgemma_loadtest.targets.base import Connection, Target


@dataclass(frozen=True)
class Supplies:
    """What all stages draw on. `targets` by tenant; the key "" is everybody else's."""

    targets: Mapping[str, Target]
    entries: Library
    fit: Fit
    seed: int
    clock: Clock

    def target(self, tenant: str) -> Target:
        return self.targets.get(tenant, self.targets[""])

    def jobs(self, load: Load, prefix: str, *place: int) -> JobSource:
        """Jobs of a user, or of all arrivals, from random numbers of that place's own."""
        return JobSource(load, self.entries, self.fit, stream(self.seed, *place), prefix)


def sources_of(
    stage: Stage,
    place: tuple[int, int],
    load: Load,
    connections: list[Connection],
    supplies: Supplies,
    sending: Sending,
    stage_begins_s: float,
) -> list[asyncio.Task[None]]:
    """Begun: a task for each user, or one for all arrivals. `place`: stage and load by number."""
    begins_s = stage_begins_s + load.from_s
    until_s = stage.duration_s if load.until_s is None else min(load.until_s, stage.duration_s)
    ends_s = stage_begins_s + until_s
    where = Place(stage.name, load.label, load.tenant, load.weight, stage_begins_s + stage.warmup_s)
    prefix = f"{place[0]}-{load.label}"
    if load.users is None:
        jobs, seed = supplies.jobs(load, prefix, *place, 0), (supplies.seed, *place, 1)
        arriving = open_loop(load, jobs, connections, where, sending, begins_s, ends_s, seed)
        return [asyncio.create_task(arriving)]
    return [
        asyncio.create_task(
            closed_loop(
                load,
                supplies.jobs(load, f"{prefix}-{user}", *place, user),
                user,
                connection,
                where,
                sending,
                begins_s,
                ends_s,
            )
        )
        for user, connection in enumerate(connections)
    ]
