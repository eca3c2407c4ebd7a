"""How long requests took, from the moment when each was due.

Knows which records tell which latency; censored values are those of requests that were cut off or
ran out of time, which would have taken longer. All in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dgemma_loadtest.metrics.quantiles import Distribution, distribution
from dgemma_loadtest.records import Outcome, Record

# What was waited for in vain: the latency is at least what was waited.
CUT_OFF = frozenset({Outcome.UNFINISHED, Outcome.LATE})


@dataclass(frozen=True)
class Latencies:
    """See the module; `queue_s` is what the server says, `lag_s` the generator's own lateness."""

    ttfb_s: Distribution  # time to the first block, or chunk
    block_s: Distribution  # between two blocks of an answer
    e2e_s: Distribution  # to the end of a complete answer
    queue_s: Distribution
    lag_s: Distribution


def first_block(record: Record) -> float | None:
    """From due to the first chunk; None where none came."""
    return None if record.first_s is None else record.first_s - record.scheduled_s


def between_blocks(record: Record) -> Iterator[float]:
    """From each chunk to the next."""
    for before, after in zip(record.chunks, record.chunks[1:], strict=False):
        yield after.at_s - before.at_s


def end_to_end(record: Record) -> float | None:
    """From due to the end of a complete answer; None of any other."""
    return record.ended_s - record.scheduled_s if record.outcome is Outcome.OK else None


def waited(record: Record) -> float:
    """From due to the end, whatever it was."""
    return record.ended_s - record.scheduled_s


def latencies(records: Sequence[Record]) -> Latencies:
    cut = [record for record in records if record.outcome in CUT_OFF]
    return Latencies(
        ttfb_s=distribution(
            _known(map(first_block, records)), [waited(r) for r in cut if not r.chunks]
        ),
        block_s=distribution([gap for record in records for gap in between_blocks(record)]),
        e2e_s=distribution(_known(map(end_to_end, records)), [waited(r) for r in cut]),
        queue_s=distribution(_known(r.usage.queue_s for r in records if r.usage)),
        lag_s=distribution([record.lag_s for record in records if record.started_s is not None]),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
