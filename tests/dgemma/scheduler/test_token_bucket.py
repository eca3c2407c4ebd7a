from __future__ import annotations

import pytest

from dgemma.scheduler.token_bucket import TokenBucket


def test_a_minutes_worth_is_there_at_once_and_comes_again_in_a_minute() -> None:
    bucket = TokenBucket(600, now=5.0)
    assert bucket.wait(600, 5.0) == 0
    bucket.take(600, 5.0)
    assert bucket.wait(1, 5.0) == pytest.approx(0.1)
    assert bucket.wait(600, 35.0) == pytest.approx(30.0)
    assert bucket.wait(600, 65.0) == 0


def test_it_never_holds_more_than_a_minutes_worth() -> None:
    bucket = TokenBucket(60, now=0.0)
    assert bucket.wait(61, 1e6) > 0


def test_what_was_reserved_and_not_used_comes_back() -> None:
    bucket = TokenBucket(100, now=0.0)
    bucket.take(100, 0.0)
    bucket.give_back(70, 0.0)
    assert bucket.wait(70, 0.0) == 0
    assert bucket.wait(71, 0.0) > 0


def test_using_more_than_was_reserved_overdraws_it() -> None:
    bucket = TokenBucket(60, now=0.0)
    bucket.take(60, 0.0)
    bucket.give_back(-30, 0.0)
    assert bucket.wait(1, 30.0) == pytest.approx(1.0)


def test_waiting_as_long_as_it_says_is_enough() -> None:
    bucket = TokenBucket(7, now=0.0)
    for _ in range(50):
        wait = bucket.wait(3, bucket._at)
        bucket.take(3, bucket._at + wait)


def test_another_limit_counts_what_has_been_used() -> None:
    bucket = TokenBucket(100, now=0.0)
    bucket.take(40, 0.0)
    bucket.resize(50, 0.0)
    assert bucket.wait(10, 0.0) == 0
    assert bucket.wait(11, 0.0) > 0
    bucket.resize(1000, 0.0)
    assert bucket.wait(960, 0.0) == 0
