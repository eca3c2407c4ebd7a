"""What each tenant was served over time, and when it had work that waited: as clients see it.

Knows blocks, steps and queue waits; knows nothing of what would be fair. A block's rows are spread
evenly over the time since the block before it, or since its request got a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dgemma_loadtest.records import Outcome, Record

Floats = NDArray[np.float64]
SHORTEST_S = 1e-6


class Span(NamedTuple):
    """From, to, in seconds."""

    begins_s: float
    ends_s: float


class Turn(NamedTuple):
    """A span in which so much service was had."""

    begins_s: float
    ends_s: float
    units: float


@dataclass(frozen=True)
class Curve:
    """Service since the beginning, piecewise linear."""

    times: Floats  # [points], ascending
    served: Floats  # [points]

    def at(self, times: Floats) -> Floats:
        if not len(self.times):
            return np.zeros_like(times)
        found: Floats = np.interp(times, self.times, self.served)
        return found


def turns(record: Record) -> Iterator[Turn]:
    """The service of one request: rows of passes where the server tells them, else denoise steps,
    else useful tokens.
    """
    began = began_at(record)
    if began is None or not record.chunks:
        return
    shares = [float(chunk.steps or 0) for chunk in record.chunks]
    usage = record.usage
    if not any(shares):
        shares = [float(chunk.characters) for chunk in record.chunks]
    total = sum(shares)
    if usage is not None and usage.service_units is not None:
        charged = float(usage.service_units)
    elif usage is not None and usage.useful_tokens is not None and not usage.steps:
        charged = float(usage.useful_tokens)
    else:
        charged = total
    for chunk, share in zip(record.chunks, shares, strict=True):
        if total and share:
            ends = max(chunk.at_s, began + SHORTEST_S)
            yield Turn(began, ends, charged * share / total)
        began = chunk.at_s


def began_at(record: Record) -> float | None:
    """When the request got a slot: by what the server tells of its queue, else, at the latest, when
    its first chunk came; None where it never did.
    """
    if record.started_s is None or record.outcome is Outcome.REJECTED:
        return None
    if record.usage is not None and record.usage.queue_s is not None:
        return record.started_s + record.usage.queue_s
    return record.first_s


def curve(records: Iterable[Record]) -> Curve:
    had = [turn for record in records for turn in turns(record)]
    if not had:
        return Curve(np.empty(0), np.empty(0))
    begins, ends, units = np.array(had).T
    slope = units / (ends - begins)
    times = np.concatenate([begins, ends])
    order = np.argsort(times, kind="stable")
    times, change = times[order], np.concatenate([slope, -slope])[order]
    served = np.concatenate([[0.0], np.cumsum(np.cumsum(change)[:-1] * np.diff(times))])
    return Curve(times, served)


def backlog(records: Iterable[Record]) -> list[Span]:
    """When at least one request waited for a slot, apart and in order."""
    waits: list[Span] = []
    for record in records:
        if record.started_s is None or record.outcome is Outcome.REJECTED:
            continue
        began = began_at(record)
        waits.append(Span(record.started_s, record.ended_s if began is None else began))
    return union(waits)


def tells_queue(records: Iterable[Record]) -> bool:
    """Whether the server says how long requests waited; else a backlog is an upper bound."""
    return all(
        record.usage is not None and record.usage.queue_s is not None
        for record in records
        if record.outcome is Outcome.OK
    )


def union(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for begins, ends in sorted(spans):
        if ends <= begins:
            continue
        if joined and begins <= joined[-1].ends_s:
            joined[-1] = Span(joined[-1].begins_s, max(ends, joined[-1].ends_s))
        else:
            joined.append(Span(begins, ends))
    return joined


def intersection(several: Sequence[Sequence[Span]]) -> list[Span]:
    """When all hold; each argument is apart and in order."""
    common = list(several[0]) if several else []
    for spans in several[1:]:
        common = _both(common, spans)
    return common


def _both(these: Sequence[Span], those: Sequence[Span]) -> list[Span]:
    common: list[Span] = []
    i = j = 0
    while i < len(these) and j < len(those):
        a, b = these[i], those[j]
        both = Span(max(a.begins_s, b.begins_s), min(a.ends_s, b.ends_s))
        if both.begins_s < both.ends_s:
            common.append(both)
        if a.ends_s < b.ends_s:
            i += 1
        else:
            j += 1
    return common


def most_at_once(records: Iterable[Record]) -> int:
    """Requests that were served at the same time, at most."""
    edges: list[tuple[float, int]] = []
    for record in records:
        began = began_at(record)
        if began is not None and record.chunks:
            edges += [(began, 1), (record.chunks[-1].at_s, -1)]
    return int(max(np.cumsum([step for _, step in sorted(edges)]), default=0))
