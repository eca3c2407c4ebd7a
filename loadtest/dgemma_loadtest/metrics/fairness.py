"""Whether tenants that compete get what their weights promise.

All of it is said of spans in which the tenants had requests waiting for a slot: whoever asks for
little gets all it asks for, which no index should call unfair.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dgemma_loadtest.metrics.bootstrap import Estimate, bootstrap
from dgemma_loadtest.metrics.latency import CUT_OFF, end_to_end, waited
from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.metrics.service import (
    Curve,
    Span,
    backlog,
    began_at,
    curve,
    intersection,
    most_at_once,
    tells_queue,
    turns,
)
from dgemma_loadtest.records import Outcome, Record

# Who waits for the next block border is served right after it: a span shorter than some blocks says
# nothing of shares.
SPAN_TURNS = 3


@dataclass(frozen=True)
class Gap:
    """How far two tenants' service by weight drifted apart while both waited: rows per weight."""

    tenants: tuple[str, str]
    value: float
    bound: float
    seconds: float  # of the span
    holds: bool


@dataclass(frozen=True)
class Fairness:
    """None where tenants never waited at the same time for long enough."""

    tenants: dict[str, float]  # their weights
    jain: float | None  # of service by weight: 1 is as promised, 1/n is all for one
    shares: dict[str, float]  # of the service in these spans, beside `due`
    due: dict[str, float]
    backlogged_s: float  # time in which all of them waited, in spans of three blocks or more
    gap: Gap | None  # the worst
    longest_wait_s: dict[str, float]  # for a slot where the server tells it, else for a first block
    rejected: dict[str, int]
    estimated: bool  # the server does not tell queue waits: spans are longer than they were
    slots: int  # requests served at the same time, at most
    turn_units: float  # of a block, at most


@dataclass(frozen=True)
class Victim:
    """What an aggressor costs a steady tenant."""

    tenant: str
    alone_p99_s: float
    beside_p99_s: float
    ratio: Estimate
    requests: tuple[int, int]  # alone, beside


def jain(values: Sequence[float]) -> float:
    """(Σx)² / (n Σx²): 1 where all are equal, 1/n where one has everything. Raises ValueError
    without values or with nothing but zeros.
    """
    x = np.asarray(values, float)
    if not len(x) or not x.any():
        raise ValueError("Jain's index of nothing")
    return float(x.sum() ** 2 / (len(x) * (x * x).sum()))


def fairness(
    records: Sequence[Record], slots: int | None = None, window: Span | None = None
) -> Fairness | None:
    """Of one stage; None with fewer than two tenants. `slots` of the server, where known.

    Spans are of the `window`; but `records` are those of the whole stage, for what was due before
    it may be served within it.
    """
    by_tenant: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_tenant[record.tenant].append(record)
    if len(by_tenant) < 2:
        return None
    weights = {tenant: theirs[0].weight for tenant, theirs in by_tenant.items()}
    clip = [Span(-math.inf, math.inf) if window is None else window]
    waiting = {t: intersection([backlog(theirs), clip]) for t, theirs in by_tenant.items()}
    curves = {tenant: curve(theirs) for tenant, theirs in by_tenant.items()}
    had_turns = [turn for record in records for turn in turns(record)]
    longest_s = max((turn.ends_s - turn.begins_s for turn in had_turns), default=0.0)
    common = [
        span
        for span in intersection(list(waiting.values()))
        if span.ends_s - span.begins_s >= SPAN_TURNS * longest_s
    ]
    had = {
        tenant: sum(float(np.diff(found.at(np.array(span)))[0]) for span in common)
        for tenant, found in curves.items()
    }
    total = sum(had.values())
    slots = slots or most_at_once(records)
    turn = max((turn.units for turn in had_turns), default=0.0)
    gaps = [
        _gap(pair, [weights[t] for t in pair], [curves[t] for t in pair], spans, turn, slots)
        for pair in combinations(by_tenant, 2)
        if (spans := intersection([waiting[t] for t in pair]))
    ]
    weight_sum = sum(weights.values())
    return Fairness(
        tenants=weights,
        jain=jain([had[t] / weights[t] for t in had]) if total else None,
        shares={t: units / total for t, units in had.items()} if total else {},
        due={t: weight / weight_sum for t, weight in weights.items()},
        backlogged_s=sum(span.ends_s - span.begins_s for span in common),
        gap=max(gaps, key=lambda gap: gap.value / gap.bound if gap.bound else 0.0, default=None),
        longest_wait_s={t: _longest_wait(theirs) for t, theirs in by_tenant.items()},
        rejected={t: sum(map(_rejected, theirs)) for t, theirs in by_tenant.items()},
        estimated=not tells_queue(records),
        slots=slots,
        turn_units=turn,
    )


def gap_bound(turn: float, slots: int, *weights: float) -> float:
    """Of a fair queue over `slots` whose turns take `turn` rows at most, in rows per weight.

    A turn for each tenant is the bound of start-time fair queueing; another, because whoever holds
    a slot keeps it until the other is owed more than a change costs; and as many as there are
    slots, because turns that run are charged before they are served.
    """
    return sum((slots + 2) * turn / weight for weight in weights)


def victim(alone: Sequence[Record], beside: Sequence[Record]) -> Victim | None:
    """One tenant's requests without and with an aggressor, cancelled and rejected ones apart."""
    before, after = _took(alone), _took(beside)
    if not before or not after:
        return None

    def ratio(a: Sequence[float], b: Sequence[float]) -> float:
        return percentile(b, 0.99) / percentile(a, 0.99)

    return Victim(
        beside[0].tenant,
        percentile(before, 0.99),
        percentile(after, 0.99),
        bootstrap(ratio, before, after),
        (len(before), len(after)),
    )


def _took(records: Sequence[Record]) -> list[float]:
    """Whole answers' times; of requests that were cut off, as long as they were waited for."""
    ended = [(end_to_end(record), record) for record in records]
    return [
        waited(record) if took is None else took
        for took, record in ended
        if took is not None or record.outcome in CUT_OFF
    ]


def _gap(
    tenants: tuple[str, str],
    weights: Sequence[float],
    curves: Sequence[Curve],
    spans: Sequence[Span],
    turn: float,
    slots: int,
) -> Gap:
    """The largest drift within one of the spans in which both waited."""
    points = np.sort(np.concatenate([one.times for one in curves]))
    worst, seconds = 0.0, spans[0].ends_s - spans[0].begins_s
    for span in spans:
        first, last = np.searchsorted(points, span)
        times = np.concatenate([[span.begins_s], points[first:last], [span.ends_s]])
        drift = curves[0].at(times) / weights[0] - curves[1].at(times) / weights[1]
        found = float(drift.max() - drift.min())
        if found > worst:
            worst, seconds = found, span.ends_s - span.begins_s
    bound = gap_bound(turn, slots, *weights)
    return Gap(tenants, worst, bound, seconds, worst <= bound)


def _rejected(record: Record) -> bool:
    return record.outcome is Outcome.REJECTED and not record.warmup


def _longest_wait(records: Sequence[Record]) -> float:
    waits = [0.0]
    for record in records:
        if record.warmup or record.started_s is None or record.outcome is Outcome.REJECTED:
            continue
        began = began_at(record)
        waits.append((record.ended_s if began is None else began) - record.scheduled_s)
    return max(waits)
