from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dgemma.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from dgemma.scheduler.events import Finished
from dgemma.tenants.billing import entry
from dgemma.tenants.usage import Entry, Totals, total
from tests.dgemma.hand_made import USAGE

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
UNTOUCHED = replace(USAGE, completion_tokens=0, denoising_steps=(), passes=0, service_units=0)


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_a_request_is_charged_with_its_tokens_and_rows(reason: str) -> None:
    assert entry(AT, "acme", Finished(reason, USAGE)) == Entry(AT, "acme", reason, 3, 4, 8)


@pytest.mark.parametrize(
    ("finished", "outcome", "units"),
    [
        (Finished("error", UNTOUCHED, ResourceExhausted("full", 1.0)), "rejected", 0),
        (Finished("error", UNTOUCHED, InvalidRequest("priority", "too high")), "rejected", 0),
        (Finished("error", UNTOUCHED, DeadlineExceeded("cannot be met")), "rejected", 0),
        (Finished("error", USAGE, DeadlineExceeded("has passed")), "rejected", 8),
        (Finished("error", UNTOUCHED, Unavailable("dead")), "failed", 0),
        (Finished("error", USAGE, EngineFailure("a pass failed")), "failed", 8),
        (Finished("cancelled", UNTOUCHED), "cancelled", 0),
    ],
)
def test_what_was_not_answered_has_no_tokens(finished: Finished, outcome: str, units: int) -> None:
    assert entry(AT, "acme", finished) == Entry(AT, "acme", outcome, 0, 0, units)


def test_an_answer_that_was_pinned_throughout_has_tokens_and_no_rows() -> None:
    pinned = replace(USAGE, denoising_steps=(0, 0), passes=0, service_units=0)
    assert entry(AT, "acme", Finished("stop", pinned)) == Entry(AT, "acme", "stop", 3, 4, 0)


def test_times_are_in_utc() -> None:
    there = AT.astimezone(timezone(timedelta(hours=9)))
    assert entry(there, "a", Finished("stop", USAGE)).at.utcoffset() == timedelta(0)


def test_sums_are_by_tenant() -> None:
    entries = [
        Entry(AT, "a", "stop", 1, 10, 100),
        Entry(AT, "b", "length", 5, 50, 500),
        Entry(AT, "a", "rejected", 0, 0, 0, requests=3),
        Entry(AT, "a", "failed", 0, 0, 7),
        Entry(AT, "a", "cancelled", 2, 20, 200),
    ]
    assert total(entries) == {"a": Totals(6, 3, 1, 3, 30, 307), "b": Totals(1, 0, 0, 5, 50, 500)}
    assert total([]) == {}
