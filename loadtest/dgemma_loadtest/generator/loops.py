"""The two ways in which requests become due: users that wait, and arrivals that do not.

Knows one load of one stage. Both go on until they are cancelled or their time is over; requests
that are open then are the stage's to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from dgemma_loadtest import arrivals
from dgemma_loadtest.clock import Clock
from dgemma_loadtest.generator.exchange import Place, exchange, unsent
from dgemma_loadtest.jobs import Job, JobSource, stream
from dgemma_loadtest.loads import Load
from dgemma_loadtest.records import Outcome, Record
from dgemma_loadtest.targets.base import Connection

REFUSED = frozenset({Outcome.REJECTED, Outcome.FAILED, Outcome.LATE})


@dataclass
class Sending:
    """What the loops of a stage share: its open requests and what it has sent."""

    clock: Clock
    keep: Callable[[Record], None]
    budget: int | None = None  # requests that the stage may send
    sent: int = 0
    open: set[asyncio.Task[Record]] = field(default_factory=set)

    def spend(self) -> bool:
        """Whether one more may be sent; it counts then."""
        if self.budget is not None and self.sent >= self.budget:
            return False
        self.sent += 1
        return True

    def begin(
        self, connection: Connection, job: Job, due_s: float, place: Place
    ) -> asyncio.Task[Record]:
        work: Coroutine[Any, Any, Record] = exchange(
            connection, job, due_s, place, self.clock, self.keep
        )
        task = asyncio.create_task(work)
        self.open.add(task)
        task.add_done_callback(self.open.discard)
        return task


async def closed_loop(
    load: Load,
    jobs: JobSource,
    user: int,
    connection: Connection,
    place: Place,
    sending: Sending,
    begins_s: float,
    ends_s: float,
) -> None:
    """One user: asks, reads the answer, thinks, asks again. After a refusal it waits as long as it
    was told to, or `retry_s`.
    """
    due_s = begins_s + jobs.think()  # users do not all begin at once where they think
    while due_s < ends_s:
        await sending.clock.until(due_s)
        if not sending.spend():
            return
        record = await asyncio.shield(sending.begin(connection, jobs.next(user), due_s, place))
        due_s = record.ended_s + jobs.think()
        if record.outcome in REFUSED:
            due_s = max(due_s, record.ended_s + (record.retry_after_s or load.retry_s))


async def open_loop(
    load: Load,
    jobs: JobSource,
    connections: list[Connection],
    place: Place,
    sending: Sending,
    begins_s: float,
    ends_s: float,
    seed: tuple[int, ...],
) -> None:
    """Requests are due at their times, however many are open; each takes the idlest connection."""
    busy = dict.fromkeys(range(len(connections)), 0)
    for at_s in due_times(load, seed):
        due_s = begins_s + at_s
        if due_s >= ends_s:
            return
        await sending.clock.until(due_s)
        if not sending.spend():
            return
        job = jobs.next()
        if sum(busy.values()) >= load.max_open:
            sending.keep(unsent(job, due_s, place))
            continue
        chosen = min(busy, key=busy.__getitem__)
        busy[chosen] += 1

        def free(_: asyncio.Task[Record], which: int = chosen) -> None:
            busy[which] -= 1

        sending.begin(connections[chosen], job, due_s, place).add_done_callback(free)


def due_times(load: Load, seed: tuple[int, ...]) -> Iterator[float]:
    """Seconds from the beginning of an open loop."""
    how = load.arrivals
    assert how is not None
    match how.process:
        case "trace":
            return arrivals.trace(how.times_s or (), how.speed)
        case "constant":
            return arrivals.constant(how.rate or 1.0)
        case "gamma":
            return arrivals.gamma(how.rate or 1.0, how.cv, stream(*seed))
    return arrivals.poisson(how.rate or 1.0, stream(*seed))
