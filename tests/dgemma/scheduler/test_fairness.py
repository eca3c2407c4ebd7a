"""What tenants get from a whole scheduler, in virtual time; first come, first served fails it all.

Bounds are worked out from weights, slots and the largest request before anything runs.
"""

from __future__ import annotations

from tests.dgemma.scheduler.dice import L, Stage
from tests.dgemma.scheduler.fairness import (
    FAIR,
    FLOOD_FACTOR,
    PLAIN,
    SHARE_ERROR,
    TENANTS_FACTOR,
    WEIGHTS,
    Ground,
    longest_wait_s,
    share_error,
    shares,
    thousand_to_one,
    victim_p99_s,
    worst_wait_s,
)
from tests.dgemma.scheduler.virtual import PASS_S, ROW_S

GROUND = Ground(Stage, L, steps=12, longest_pass_s=lambda rows: PASS_S + ROW_S * rows)


def test_backlogged_tenants_get_rows_by_their_weights() -> None:
    found = shares(GROUND, FAIR, passes=4000)
    assert share_error(found) <= SHARE_ERROR, found
    assert share_error(shares(GROUND, PLAIN, passes=4000)) > SHARE_ERROR


def test_a_tenant_that_floods_does_not_slow_the_others_down() -> None:
    for options, holds in ((FAIR, True), (PLAIN, False)):
        flooded, quiet = (victim_p99_s(GROUND, options, n, passes=5000) for n in (100, 2))
        assert (flooded <= FLOOD_FACTOR * quiet) is holds


def test_nobody_waits_longer_than_was_worked_out_before() -> None:
    bound = longest_wait_s(GROUND, WEIGHTS, own=1.0)
    assert worst_wait_s(GROUND, FAIR, passes=4000) <= bound
    assert worst_wait_s(GROUND, PLAIN, passes=4000) > bound


def test_a_thousand_tenants_cost_what_one_does() -> None:
    """One of a few, for the sake of machines that are busy with something else."""
    assert any(thousand_to_one(GROUND) <= TENANTS_FACTOR for _ in range(4))
