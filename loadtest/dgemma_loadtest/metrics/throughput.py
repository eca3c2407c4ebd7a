"""How much came out in a span of time, and how fast it was for one user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dgemma_loadtest.metrics.quantiles import Distribution, distribution
from dgemma_loadtest.records import Outcome, Record


@dataclass(frozen=True)
class Window:
    """The span that counts: requests that were due in it, and what came out in it."""

    begins_s: float
    ends_s: float

    @property
    def seconds(self) -> float:
        return max(self.ends_s - self.begins_s, 0.0)

    def holds(self, at_s: float) -> bool:
        return self.begins_s <= at_s < self.ends_s


@dataclass(frozen=True)
class Throughput:
    seconds: float
    offered_per_s: float | None  # requests due
    completed_per_s: float | None  # answers that ended in the window
    tokens_per_s: float | None  # useful tokens that came in the window, of all users together
    tokens_per_s_user: Distribution  # useful tokens of an answer over its end-to-end time


def throughput(records: Sequence[Record], window: Window) -> Throughput:
    """Of all `records`, those from before the window too: what they bring within it counts."""
    span = window.seconds
    due = sum(window.holds(record.scheduled_s) for record in records)
    complete = [r for r in records if r.outcome is Outcome.OK]
    ended = sum(window.holds(record.ended_s) for record in complete)
    came = [share for record in complete for share in _came(record, window)]
    told = any(r.usage and r.usage.useful_tokens is not None for r in complete)
    return Throughput(
        seconds=span,
        offered_per_s=due / span if span else None,
        completed_per_s=ended / span if span else None,
        tokens_per_s=sum(came) / span if span and told else None,
        tokens_per_s_user=distribution(
            [rate for r in complete if window.holds(r.scheduled_s) for rate in user_rate(r)]
        ),
    )


def user_rate(record: Record) -> Iterator[float]:
    """Useful tokens per second as its user saw them; nothing where they are not told."""
    took = record.ended_s - record.scheduled_s
    if record.usage is not None and record.usage.useful_tokens and took > 0:
        yield record.usage.useful_tokens / took


def _came(record: Record, window: Window) -> Iterator[float]:
    """Useful tokens that came within the window, by the characters of each chunk."""
    if record.usage is None or not record.usage.useful_tokens:
        return
    characters = sum(chunk.characters for chunk in record.chunks)
    if not characters:
        if window.holds(record.ended_s):
            yield float(record.usage.useful_tokens)
        return
    inside = sum(chunk.characters for chunk in record.chunks if window.holds(chunk.at_s))
    yield record.usage.useful_tokens * inside / characters
