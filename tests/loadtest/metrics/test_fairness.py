"""Jain's index, service gaps and victims where the answer can be worked out."""

from __future__ import annotations

import pytest

from dgemma_loadtest.metrics.fairness import fairness, gap_bound, jain, victim
from dgemma_loadtest.metrics.service import Span, backlog, curve, intersection, most_at_once, union
from dgemma_loadtest.records import Outcome, Record
from tests.loadtest.make import record, usage


def test_index() -> None:
    assert jain([1, 1, 1, 1]) == 1.0
    assert jain([5, 0, 0, 0]) == 0.25
    assert jain([1, 2]) == pytest.approx(0.9)
    with pytest.raises(ValueError):
        jain([0, 0])


def test_spans() -> None:
    assert union([(3, 4), (1, 2), (2, 2.5), (9, 9)]) == [(1, 2.5), (3, 4)]
    assert intersection([[Span(0, 5), Span(6, 9)], [Span(4, 7)], [Span(0, 8)]]) == [(4, 5), (6, 7)]
    assert intersection([[Span(0, 1)], [Span(2, 3)]]) == []


def test_service_is_spread_over_its_block() -> None:
    """Queued for a second; 11 and 33 rows, of which the blocks had 10 and 30 steps."""
    one = record(0.0, 2.0, 4.0, usage=usage(10, 30, queue_s=1.0, service_units=44))
    one = _with_steps(one, 10, 30)
    found = curve([one])
    assert found.at([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0]) == pytest.approx(
        [0, 0, 5.5, 11, 27.5, 44, 44]
    )
    assert backlog([one]) == [(0.0, 1.0)]


def test_rejected_requests_are_no_backlog() -> None:
    assert backlog([record(0.0, took=5.0, outcome=Outcome.REJECTED)]) == []


def crowd(tenant: str, weight: float, per_s: float, seconds: float = 20.0) -> list[Record]:
    """Always one running and one waiting; each is a block of 10 rows."""
    each = 1 / per_s
    return [
        record(
            (number - 1) * each,
            2 * each,
            tenant=tenant,
            weight=weight,
            usage=usage(10, queue_s=each, service_units=10),
        )
        for number in range(int(seconds * per_s))
    ]


def test_shares_by_weight() -> None:
    """Twice the weight and twice the service is fair; the same service is not."""
    fair = fairness([*crowd("a", 1, 1.0), *crowd("b", 2, 2.0)])
    assert fair is not None and fair.jain == pytest.approx(1.0, abs=0.002)
    assert fair.shares["b"] == pytest.approx(2 / 3, abs=0.02)
    assert fair.due == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    unfair = fairness([*crowd("a", 1, 1.0), *crowd("b", 2, 1.0)])
    assert unfair is not None and unfair.jain == pytest.approx(0.9, abs=0.01)


def test_what_was_due_before_the_window_is_served_within_it() -> None:
    """A flood that is all due at once, in the warm-up, and served one after the other."""
    flood = [
        record(0.0, number + 2.0, tenant="a", warmup=True, usage=usage(10, queue_s=number + 1.0))
        for number in range(40)
    ]
    steady = crowd("b", 1, 1.0, 40)
    found = fairness([*flood, *steady], window=Span(10.0, 30.0))
    assert found is not None and found.backlogged_s == pytest.approx(20.0)
    assert found.jain == pytest.approx(1.0, abs=0.01)
    assert found.longest_wait_s == {"a": 0.0, "b": 1.0}


def test_gap_grows_where_one_is_starved() -> None:
    fair = fairness([*crowd("a", 1, 2.0, 200), *crowd("b", 1, 2.0, 200)], slots=2)
    assert fair is not None and fair.gap is not None and fair.gap.holds
    starved = fairness([*crowd("a", 1, 2.0, 200), *crowd("b", 1, 0.2, 200)], slots=2)
    assert starved is not None and starved.gap is not None
    assert not starved.gap.holds and starved.gap.bound == gap_bound(10.0, 2, 1, 1) == 80.0
    assert starved.gap.value == pytest.approx(18 * starved.gap.seconds, rel=0.1)  # 20 - 2 rows/s


def test_who_asks_for_little_is_not_starved() -> None:
    """Never both waiting: nothing to be fair about."""
    calm = [record(i, 0.5, tenant="a", usage=usage(5, queue_s=0.0)) for i in range(9)]
    found = fairness([*calm, *crowd("b", 1, 5.0)])
    assert found is not None and found.jain is None and found.gap is None


def test_waiting_for_a_block_border_is_no_backlog() -> None:
    """A victim that waits a little before each of its turns, and gets each of them."""
    victim = [record(number, 0.9, tenant="v", usage=usage(10, queue_s=0.4)) for number in range(20)]
    found = fairness([*victim, *crowd("flood", 1, 1.0)])
    assert found is not None and found.jain is None
    assert found.longest_wait_s["v"] == pytest.approx(0.4)


def test_longest_wait_counts_those_that_never_got_a_slot() -> None:
    hung = record(0.0, took=12.0, tenant="a", outcome=Outcome.UNFINISHED)
    found = fairness([hung, *crowd("b", 1, 5.0)])
    assert found is not None and found.longest_wait_s["a"] == 12.0
    assert found.longest_wait_s["b"] == pytest.approx(0.2)


def test_one_tenant_alone_has_nobody_to_be_compared_with() -> None:
    assert fairness(crowd("a", 1, 1.0)) is None


def test_slots_are_seen() -> None:
    assert most_at_once([record(0, 2, usage=usage(4, queue_s=0.0)) for _ in range(3)]) == 3


def test_victims() -> None:
    alone = [record(i, 1.0 + i / 1000) for i in range(100)]
    beside = [record(i, 2.0 + i / 1000) for i in range(100)]
    found = victim(alone, beside)
    assert found is not None and found.ratio.value == pytest.approx(2.098 / 1.098)
    assert found.ratio.low is not None and found.ratio.low <= found.ratio.value
    hung = victim(alone, [record(i, took=30.0, outcome=Outcome.LATE) for i in range(9)])
    assert hung is not None and hung.ratio.value > 27  # not answered at all is no advantage
    assert victim(alone, []) is None


def _with_steps(one: Record, *steps: int) -> Record:
    chunks = tuple(c._replace(steps=s) for c, s in zip(one.chunks, steps, strict=True))
    return record(
        one.scheduled_s, **{**{n: getattr(one, n) for n in Record.__slots__}, "chunks": chunks}
    )
