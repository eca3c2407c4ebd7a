from __future__ import annotations

from dataclasses import replace

import pytest

from dgemma.errors import (
    ConfigurationError,
    DeadlineExceeded,
    DgemmaError,
    EngineFailure,
    InvalidRequest,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from dgemma.metrics.families import OUTCOMES
from dgemma.metrics.requests import OTHER, RequestMetrics
from dgemma.scheduler.events import Block, Finished
from dgemma.scheduler.tenancy import Tenant
from dgemma.tenants.schema import RESERVED_NAMES
from tests.dgemma.hand_made import USAGE, block, finished, request
from tests.dgemma.metrics.book import Book

MODEL = "demo"


def timed(took_s: float, age_s: float, *ids: int, index: int = 0, steps: int = 2) -> Block:
    return replace(block("", *ids, block_index=index, steps=steps), took_s=took_s, age_s=age_s)


def told(*blocks: Block, end: Finished | None = None) -> Book:
    book = Book()
    metrics = RequestMetrics(book, MODEL)
    for each in blocks:
        metrics.block(request(), each)
    if end is not None:
        metrics.end(request(), end)
    return book


# Blocks


def test_a_block_s_latency_is_its_own_and_the_first_one_s_age_is_the_request_s() -> None:
    book = told(timed(0.2, 0.5, 7, 8), timed(0.3, 0.8, 9, index=1, steps=5))
    assert book.observed["dgemma_block_latency_seconds",] == [0.2, 0.3]
    assert book.observed["dgemma_denoising_steps",] == [2, 5]
    assert book.observed["dgemma_time_to_first_block_seconds",] == [0.5]
    assert book.observed["time_to_first_token_seconds", MODEL] == [0.5]
    assert book.counts["generation_tokens_total", MODEL] == 3


def test_the_first_token_is_in_the_first_block_that_has_any() -> None:
    book = told(timed(0.2, 0.5), timed(0.2, 0.7, index=1), timed(0.2, 0.9, 5, index=2))
    assert book.observed["dgemma_time_to_first_block_seconds",] == [0.5]
    assert book.observed["time_to_first_token_seconds", MODEL] == [0.9]


def test_a_later_block_of_a_request_that_had_tokens_is_not_its_first() -> None:
    book = told(timed(0.2, 0.5, 1), timed(0.2, 0.7, 2, index=1))
    assert book.observed["time_to_first_token_seconds", MODEL] == [0.5]


def test_a_block_that_is_pinned_throughout_was_not_denoised() -> None:
    book = told(timed(0.0, 0.5, 1, steps=0))
    assert not book.observed["dgemma_denoising_steps",]
    assert not book.observed["dgemma_block_latency_seconds",]
    assert book.observed["dgemma_time_to_first_block_seconds",] == [0.5]


def test_a_request_that_ended_silently_leaves_nothing_to_the_next_of_its_id() -> None:
    book = Book()
    metrics = RequestMetrics(book, MODEL)
    metrics.block(request(), timed(0.2, 0.5))
    metrics.end(request(), finished())
    metrics.block(request(), timed(0.2, 0.9, 5, index=1))
    assert not book.observed["time_to_first_token_seconds", MODEL]


# Ends


def test_the_end_of_an_answer_is_counted_as_its_usage_says() -> None:
    book = told(end=finished("stop"))
    assert book.counts["prompt_tokens_total", MODEL] == USAGE.prompt_tokens
    assert book.counts["dgemma_committed_tokens_total",] == 8
    assert book.counts["dgemma_useful_tokens_total",] == 4
    assert book.counts["dgemma_wasted_tokens_total",] == 4
    assert book.counts["dgemma_cap_hits_total",] == 1
    assert book.counts["dgemma_service_units_total", "default"] == 8
    assert book.observed["dgemma_queue_wait_seconds", "default"] == [0.0005]
    assert book.observed["e2e_request_latency_seconds", MODEL] == [0.009]
    assert book.observed["request_prompt_tokens", MODEL] == [3]
    assert book.observed["request_generation_tokens", MODEL] == [4]
    assert book.observed["time_per_output_token_seconds", MODEL] == [
        pytest.approx((9.0 - 0.5) / 1e3 / 4)
    ]


def test_an_answer_without_tokens_has_no_time_per_token() -> None:
    book = told(end=Finished("stop", replace(USAGE, completion_tokens=0)))
    assert not book.observed["time_per_output_token_seconds", MODEL]
    assert book.counts["dgemma_wasted_tokens_total",] == 8


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_complete_answers_are_successes(reason: str) -> None:
    book = told(end=finished(reason))
    assert book.counts["dgemma_requests_total", reason] == 1
    assert book.counts["request_success_total", MODEL] == 1
    assert book.counts["request_failure_total", MODEL] == 0


def test_a_cancelled_request_is_no_success_and_has_no_latency() -> None:
    book = told(end=finished("cancelled"))
    assert book.counts["dgemma_requests_total", "cancelled"] == 1
    assert book.counts["request_failure_total", MODEL] == 1
    assert not book.observed["e2e_request_latency_seconds", MODEL]
    assert book.counts["prompt_tokens_total", MODEL] == 3  # it ran


REFUSED = replace(
    *(USAGE,),
    completion_tokens=0,
    committed_tokens=0,
    denoising_steps=(),
    cap_hits=0,
    passes=0,
    service_units=0,
    queue_ms=0.0,
    total_ms=0.0,
)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidRequest("seed", "no"), "invalid"),
        (Unauthenticated("who"), "unauthenticated"),
        (ResourceExhausted("full", 1.0), "rejected"),
        (DeadlineExceeded("late"), "late"),
        (Unavailable("stopping"), "unavailable"),
        (EngineFailure("bad pass"), "failed"),
        (ConfigurationError("odd"), "failed"),
    ],
)
def test_every_error_is_an_outcome_of_a_fixed_set(error: DgemmaError, outcome: str) -> None:
    book = told(end=Finished("error", REFUSED, error))
    RequestMetrics(book, MODEL).refused(error)
    assert book.counts["dgemma_requests_total", outcome] == 2
    assert book.counts["request_failure_total", MODEL] == 2
    assert book.labels("dgemma_requests_total") == {(o,) for o in OUTCOMES}
    assert sum(v for key, v in book.counts.items() if key[0] == "dgemma_requests_total") == 2


def test_who_was_refused_at_once_has_neither_waited_nor_had_a_prompt_read() -> None:
    book = told(end=Finished("error", REFUSED, ResourceExhausted("full", 1.0)))
    assert not book.observed["dgemma_queue_wait_seconds", "default"]
    assert book.counts["prompt_tokens_total", MODEL] == 0


def test_who_waited_in_vain_has_waited() -> None:
    waited = replace(REFUSED, queue_ms=250.0, total_ms=250.0)
    book = told(end=Finished("error", waited, DeadlineExceeded("late")))
    assert book.observed["dgemma_queue_wait_seconds", "default"] == [0.25]
    assert book.counts["prompt_tokens_total", MODEL] == 0


# Tenants


def test_tenants_beyond_the_most_share_a_label() -> None:
    book = Book()
    metrics = RequestMetrics(book, MODEL, most_tenants=2)
    for name in ("a", "b", "c", "d", "a", "c"):
        metrics.end(replace(request(), tenant=Tenant(name)), finished())
    units = {key[1]: v for key, v in book.counts.items() if key[0] == "dgemma_service_units_total"}
    assert units == {"a": 16, "b": 8, OTHER: 24}
    assert book.labels("dgemma_queue_wait_seconds") == {("a",), ("b",), (OTHER,)}


def test_no_tenant_may_be_called_as_the_others_together() -> None:
    assert OTHER in RESERVED_NAMES
