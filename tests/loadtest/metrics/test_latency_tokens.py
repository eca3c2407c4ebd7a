"""Latencies, tokens, throughput and goodput of records by hand."""

from __future__ import annotations

import pytest

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.metrics.latency import latencies
from dgemma_loadtest.metrics.slo import Slo, goodput
from dgemma_loadtest.metrics.throughput import Window, throughput
from dgemma_loadtest.metrics.tokens import tokens
from dgemma_loadtest.records import Outcome
from tests.loadtest.make import record, usage


def test_latencies_count_from_when_a_request_was_due() -> None:
    """Sent half a second late: the half second is the user's."""
    late = record(1.0, 1.0, 1.5, 2.5, started_s=1.5, lag_s=0.5, usage=usage(8, 8, 8, queue_s=0.2))
    found = latencies([late])
    assert found.ttfb_s.p50 is not None and found.ttfb_s.p50.value == 1.0
    assert found.e2e_s.p50 is not None and found.e2e_s.p50.value == 2.5
    assert (found.block_s.min, found.block_s.max) == (0.5, 1.0)
    assert found.lag_s.max == 0.5 and found.queue_s.max == 0.2


def test_what_was_waited_for_in_vain_counts() -> None:
    answered = [record(i, 0.5) for i in range(3)]
    hung = record(0.0, took=30.0, outcome=Outcome.LATE, code="TIMEOUT")
    found = latencies([*answered, hung])
    assert found.ttfb_s.censored == 1 and found.e2e_s.censored == 1
    assert found.ttfb_s.p99 is not None and found.ttfb_s.p99.value >= 30.0


def test_rejected_requests_have_no_latency() -> None:
    found = latencies([record(0.0, took=0.01, outcome=Outcome.REJECTED)])
    assert found.ttfb_s.count == 0 and found.e2e_s.count == 0 and found.lag_s.count == 1


def test_waste_steps_and_passes() -> None:
    answers = [
        record(0.0, 1.0, 2.0, usage=usage(10, 30, cap_hits=0)),
        record(1.0, 1.0, usage=usage(48, cap_hits=1)),
    ]
    found = tokens(answers)
    assert (found.useful, found.committed, found.waste) == (120, 192, 0.375)
    assert (found.blocks, found.steps_histogram) == (3, {10: 1, 30: 1, 48: 1})
    assert found.cap_hit_rate == pytest.approx(1 / 3)
    assert found.useful_per_pass == pytest.approx(120 / (41 + 49))
    assert found.steps.mean == pytest.approx(88 / 3)


def test_blocks_that_are_pinned_have_no_steps() -> None:
    found = tokens([record(0.0, 1.0, 2.0, usage=usage(0, 12))])
    assert (found.blocks, found.steps.mean) == (1, 12)


def test_a_sum_of_some_is_not_taken_for_that_of_all() -> None:
    told, untold = record(0, 1, usage=usage(4)), record(1, 1, usage=usage(4, passes=None))
    found = tokens([told, untold])
    assert found.passes is None and found.useful_per_pass is None and found.useful == 80


def test_throughput_of_a_window() -> None:
    """Three answers of 80 tokens in two blocks; one block came before, one behind the window."""
    answers = [
        record(start, 1.0, 2.0, usage=usage(8, 8)) for start in (8.5, 12.0, 18.5)
    ]  # fmt: skip
    found = throughput(answers, Window(10.0, 20.0))
    assert (found.offered_per_s, found.completed_per_s) == (0.2, 0.2)
    assert found.tokens_per_s == pytest.approx((40 + 80 + 40) / 10)
    assert found.tokens_per_s_user.p50 is not None and found.tokens_per_s_user.p50.value == 40.0


def test_goodput_needs_every_block_in_time() -> None:
    slo = Slo.parse("ttfb=500ms, block=1")
    requests = [
        record(0, 0.4, 1.2),
        record(1, 0.6, 1.2),  # first block
        record(2, 0.4, 0.8, 1.9),  # last block
        record(3, took=0.1, outcome=Outcome.REJECTED),
        record(4, 0.1, outcome=Outcome.CANCELLED),  # by the scenario: says nothing of the service
    ]
    found = goodput(requests, slo, 10.0)
    assert (found.requests, found.good, found.per_s) == (4, 1, 0.1)
    assert found.missed == {"ttfb": 1, "block": 1, "rejected": 1}


@pytest.mark.parametrize("text", ["ttft=1", "ttfb", "ttfb=0", "ttfb=-1", "ttfb=1m", "block=fast"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="slo"):
        Slo.parse(text)
