"""Users that are started and stopped one by one, as Locust tells: each is a loop of its own.

Knows commands and where records go; when requests are due is `loops`'s.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, replace

from pydantic import ValidationError

from dgemma_loadtest.generator.exchange import Place
from dgemma_loadtest.generator.loops import Sending, closed_loop, open_loop
from dgemma_loadtest.generator.order import COMMAND, Command, event
from dgemma_loadtest.generator.pipes import Pipes
from dgemma_loadtest.generator.sources import Supplies
from dgemma_loadtest.recording import to_line
from dgemma_loadtest.records import Record
from dgemma_loadtest.scenario import Scenario
from dgemma_loadtest.targets.base import Connection

FLUSH_S = 0.2
DRAIN_S = 10.0
FOREVER_S = 1e12


@dataclass(frozen=True)
class _Era:
    """From when on requests belong to a stage, and count."""

    stage: str
    begins_s: float
    measured_from_s: float = FOREVER_S


class Crowd:
    """The users that are there."""

    def __init__(self, scenario: Scenario, supplies: Supplies, pipes: Pipes) -> None:
        self._supplies, self._pipes = supplies, pipes
        self._loads = {
            (stage.name, load.label): load for stage in scenario.stages for load in stage.loads
        }
        self._users: dict[int, asyncio.Task[None]] = {}
        self._idle: dict[tuple[str, str], list[list[Connection]]] = defaultdict(list)
        self._records: list[Record] = []
        self._eras = [_Era("", -FOREVER_S)]
        self._sending = Sending(supplies.clock, self._keep)

    async def obey(self, command: Command) -> None:
        match command.do:
            case "start":
                task = asyncio.create_task(self._user(command.user, (command.stage, command.load)))
                self._users[command.user] = task
            case "stop":
                if (user := self._users.pop(command.user, None)) is not None:
                    user.cancel()
            case "stage":
                now = self._supplies.clock.now()
                counts = FOREVER_S if command.warmup_s is None else now + command.warmup_s
                self._eras.append(_Era(command.stage, now, counts))
            case "measure":
                now = self._supplies.clock.now()
                self._eras[-1] = replace(self._eras[-1], measured_from_s=now)

    async def finish(self) -> None:
        """No more requests; those that are open have some seconds, then they are cut off."""
        for user in self._users.values():
            user.cancel()
        rest = set(self._sending.open)
        if rest:
            _, rest = await asyncio.wait(rest, timeout=DRAIN_S)
        for request in rest:
            request.cancel()
        if rest:
            await asyncio.wait(rest)
        self.flush()

    def flush(self) -> None:
        """Send on what has ended."""
        if self._records:
            lines = [to_line(record).decode() for record in self._records]
            self._pipes.send(event("records", lines=lines))
            self._records.clear()

    def _keep(self, record: Record) -> None:
        due_s = record.scheduled_s
        era = next(era for era in reversed(self._eras) if era.begins_s <= due_s)
        warmup = due_s < era.measured_from_s
        self._records.append(replace(record, stage=era.stage, warmup=warmup))

    async def _user(self, user: int, which: tuple[str, str]) -> None:
        """Until it is cancelled; its connections are then the next user's."""
        load = self._loads[which]
        supplies, idle = self._supplies, self._idle[which]
        count = 1 if load.users is not None else load.connections
        if idle:
            connections = idle.pop()
        else:
            connections = await supplies.target(load.tenant).connect(count)
        jobs = supplies.jobs(load, f"{load.label}-{user}", user)
        place = Place("", load.label, load.tenant, load.weight)
        now = supplies.clock.now()
        try:
            if load.users is not None:
                await closed_loop(
                    load, jobs, user, connections[0], place, self._sending, now, FOREVER_S
                )
            else:
                seed = (supplies.seed, user, 1)
                await open_loop(load, jobs, connections, place, self._sending, now, FOREVER_S, seed)
        finally:
            idle.append(connections)


async def commanded(scenario: Scenario, supplies: Supplies, pipes: Pipes) -> None:
    """Obeys until it is told to end, or nobody is there any more."""
    crowd = Crowd(scenario, supplies, pipes)
    flushing = asyncio.create_task(_flush(crowd))
    try:
        while line := await pipes.line():
            try:
                command = COMMAND.validate_json(line)
            except ValidationError:
                break  # STOP
            if command.do == "end":
                break
            await crowd.obey(command)
    finally:
        flushing.cancel()
        await crowd.finish()


async def _flush(crowd: Crowd) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        crowd.flush()
