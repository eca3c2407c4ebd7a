"""One request, from due to its end, as a record.

Knows outcomes; knows nothing of when requests are due. However the exchange ends, cancelled
included, there is one record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from dgemma_loadtest.clock import Clock
from dgemma_loadtest.errors import TargetError
from dgemma_loadtest.jobs import Job
from dgemma_loadtest.records import Chunk, Outcome, Record, Usage
from dgemma_loadtest.targets.base import Connection, End

REJECTED = frozenset({"RESOURCE_EXHAUSTED", "HTTP_429"})
LATE = frozenset({"DEADLINE_EXCEEDED", "HTTP_408", "HTTP_504"})
_MESSAGE = 300  # characters of an error that are kept


@dataclass(frozen=True)
class Place:
    """Where in the run a request belongs."""

    stage: str
    load: str
    tenant: str
    weight: float
    measured_from_s: float = 0.0


@dataclass
class _Ended:
    """How a request ended, until it is a record."""

    outcome: Outcome
    at_s: float
    code: str | None = None
    message: str | None = None
    retry_after_s: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


async def exchange(
    connection: Connection,
    job: Job,
    due_s: float,
    place: Place,
    clock: Clock,
    keep: Callable[[Record], None],
) -> Record:
    """Send and listen to the end. Cancelling it keeps a record of what there was."""
    chunks: list[Chunk] = []
    started_s = clock.now()
    try:
        ended = await _listen(connection, job, started_s, clock, chunks)
    except asyncio.CancelledError:
        keep(_record(job, place, due_s, started_s, chunks, _cut(clock)))
        raise
    record = _record(job, place, due_s, started_s, chunks, ended)
    keep(record)
    return record


def unsent(job: Job, due_s: float, place: Place) -> Record:
    """A request for which there were too many open ones."""
    return _record(job, place, due_s, None, [], _Ended(Outcome.UNSENT, due_s))


async def _listen(
    connection: Connection, job: Job, started_s: float, clock: Clock, chunks: list[Chunk]
) -> _Ended:
    try:
        async with (
            asyncio.timeout(job.cancel_after_s) as leaving,
            aclosing(connection.ask(job)) as answer,
        ):
            async for part in answer:
                if isinstance(part, End):
                    usage, reason = part.usage, part.finish_reason
                    outcome = Outcome.FAILED if reason == "cancelled" else Outcome.OK
                    code = "CANCELLED" if outcome is Outcome.FAILED else None
                    return _Ended(outcome, part.at_s, code, finish_reason=reason, usage=usage)
                chunks.append(
                    Chunk(round(part.at_s, 6), part.kind, part.characters, part.block, part.steps)
                )
                if len(chunks) == job.cancel_after_blocks:
                    return _Ended(Outcome.CANCELLED, part.at_s)
    except TimeoutError:
        outcome = Outcome.CANCELLED if leaving.expired() else Outcome.LATE
        return _Ended(outcome, clock.now(), None if leaving.expired() else "TIMEOUT")
    except TargetError as error:
        outcome = Outcome.REJECTED if error.code in REJECTED else Outcome.FAILED
        outcome = Outcome.LATE if error.code in LATE else outcome
        return _Ended(
            outcome, clock.now(), error.code, error.message[:_MESSAGE], error.retry_after_s
        )
    except Exception as error:  # an answer that is none: every request has a record
        said = f"{type(error).__name__}: {error}"
        return _Ended(Outcome.FAILED, clock.now(), "PROTOCOL", said[:_MESSAGE])
    return _Ended(Outcome.FAILED, clock.now(), "PROTOCOL", "the answer has no end")


def _cut(clock: Clock) -> _Ended:
    return _Ended(Outcome.UNFINISHED, clock.now())


def _record(
    job: Job,
    place: Place,
    due_s: float,
    started_s: float | None,
    chunks: list[Chunk],
    ended: _Ended,
) -> Record:
    due_s = round(due_s, 6)
    return Record(
        id=job.id,
        stage=place.stage,
        load=place.load,
        tenant=place.tenant,
        weight=place.weight,
        user=job.user,
        prompt_class=job.prompt.prompt_class,
        prompt=job.prompt.name,
        task=job.task,
        max_new_tokens=job.max_new_tokens,
        warmup=due_s < place.measured_from_s,
        scheduled_s=due_s,
        started_s=None if started_s is None else round(started_s, 6),
        lag_s=0.0 if started_s is None else round(started_s - due_s, 6),
        ended_s=round(ended.at_s, 6),
        outcome=ended.outcome,
        chunks=_with_steps(chunks, ended.usage),
        code=ended.code,
        message=ended.message,
        retry_after_s=ended.retry_after_s,
        finish_reason=ended.finish_reason,
        usage=ended.usage,
    )


def _with_steps(chunks: list[Chunk], usage: Usage | None) -> tuple[Chunk, ...]:
    """Over HTTP steps are told at the end; they belong to the blocks where each has a chunk."""
    if usage is None or len(usage.steps) != len(chunks) or any(c.steps is not None for c in chunks):
        return tuple(chunks)
    return tuple(
        chunk._replace(steps=steps) for chunk, steps in zip(chunks, usage.steps, strict=True)
    )
