"""When a server no longer keeps up, by requests made up for it."""

from __future__ import annotations

from dgemma_loadtest.generator.stages import keeps_up


def test_a_slow_server_that_keeps_up() -> None:
    """Every answer takes 8 s; 10 a second are due, and come."""
    requests = [(number / 10, number / 10 + 8.0) for number in range(600)]
    assert keeps_up(requests, 30.0, 60.0, 0.95)


def test_one_that_does_not() -> None:
    """10 a second are due, and 8 come."""
    requests = [(number / 10, number / 8 + 0.5) for number in range(600)]
    assert not keeps_up(requests, 30.0, 60.0, 0.9) and keeps_up(requests, 30.0, 60.0, 0.75)


def test_what_fails_does_not_count() -> None:
    requests = [(number / 10, number / 10 if number % 2 else None) for number in range(600)]
    assert not keeps_up(requests, 30.0, 60.0, 0.6)


def test_nothing_due_is_kept_up_with() -> None:
    assert keeps_up([], 0.0, 1.0, 0.9)
