"""What tenants get from a whole scheduler, in virtual time; first come, first served fails it all.

Bounds are worked out from weights, slots and the largest request before anything runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import pytest

from dgemma.request import Request
from dgemma.scheduler.options import Options
from dgemma.scheduler.tenancy import Tenant
from tests.dgemma.scheduler.dice import Client, L, Stage, asked, keep_busy
from tests.dgemma.scheduler.virtual import PASS_S, ROW_S

FAIR, PLAIN = Options(), Options(fair=False)
SLOTS = 4


def mixed(name: str, tenant: Tenant, number: int) -> Request:
    """One to four canvases, with prompts of one to four chunks."""
    return asked(
        name,
        tenant,
        seed=number,
        max_new_tokens=L * (1 + number % 4),
        prompt=(1,) * (1 + 7 * (number % 5)),
    )


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


# Shares


def shares(options: Options) -> dict[str, float]:
    """Rows of each tenant, all backlogged, relative to the first's."""
    stage = Stage(SLOTS, options)
    clients = [Client(Tenant(str(w), float(w)), 8, mixed) for w in (1, 2, 4)]
    keep_busy(stage, clients, passes=4000)
    return {name: rows / stage.served["1"] for name, rows in stage.served.items()}


def within_five_percent(found: dict[str, float]) -> bool:
    return all(found[str(w)] == pytest.approx(w, rel=0.05) for w in (1, 2, 4))


def test_backlogged_tenants_get_rows_by_their_weights() -> None:
    found = shares(FAIR)
    assert within_five_percent(found), found
    assert not within_five_percent(shares(PLAIN))


# A flood


def victim_p99_s(options: Options, flood: int) -> float:
    """What a steady tenant's requests take beside three others, one of which may flood."""
    stage = Stage(SLOTS, options)
    victim = Client(Tenant("victim"), 2, mixed)
    neighbours = [Client(Tenant(f"n{i}"), 2, mixed) for i in range(2)]
    keep_busy(stage, [Client(Tenant("flood"), flood, mixed), *neighbours, victim], passes=5000)
    return p99(victim.takes_s)


def test_a_tenant_that_floods_does_not_slow_the_others_down() -> None:
    assert victim_p99_s(FAIR, flood=100) <= 1.25 * victim_p99_s(FAIR, flood=2)
    assert victim_p99_s(PLAIN, flood=100) > 1.25 * victim_p99_s(PLAIN, flood=2)


# The longest wait

STEPS, CHUNKS, CANVASES = 12, 5, 4  # the largest request of `mixed`
ROWS = CHUNKS + CANVASES + STEPS  # of a turn, at most: all that is known is encoded, then a canvas
CONTEXT = CHUNKS + CANVASES


def longest_wait_s(weights: Sequence[float], own: float, slots: int) -> float:
    """Until a tenant of weight `own` that has no other request has a slot, beside such `weights`.

    When its last request had its last turn, nobody who waited was owed one: its tag was at most a
    turn above the lowest, and then its own turn was charged. It gets a slot at the next block
    border when all that run have tags above its own by a turn of its own and by what it costs them
    to make room. By then each of the others has been charged for as much, and one turn more; what
    their slots had begun was charged before. In a pass every slot that is taken has a row, and a
    border comes with every turn's end.
    """
    above = ROWS / min(weights) + 2 * ROWS / own
    rows = sum(weight * above + CONTEXT + ROWS for weight in weights) + slots * ROWS
    passes = rows / slots + ROWS
    return passes * (PASS_S + 2 * slots * ROW_S)


def worst_wait_s(options: Options) -> float:
    """Of a tenant with one request at a time, beside others that always have more waiting."""
    stage = Stage(SLOTS, options)
    steady = Client(Tenant("steady", 1.0), 1, mixed)
    crowd = [Client(Tenant(f"w{w}", w), 40, mixed) for w in (1.0, 2.0, 4.0)]
    keep_busy(stage, [*crowd, steady], passes=4000)
    return max(steady.waits_s)


def test_nobody_waits_longer_than_was_worked_out_before() -> None:
    bound = longest_wait_s([1.0, 2.0, 4.0], own=1.0, slots=SLOTS)
    assert worst_wait_s(FAIR) <= bound
    assert worst_wait_s(PLAIN) > bound


# The cost of deciding


def step_s(stage: Stage) -> float:
    began = time.perf_counter()
    for _ in range(5):
        stage.scheduler.step()
    return time.perf_counter() - began


def a_thousand_to_one() -> float:
    """The time of a step with a thousand tenants over that with one, measured in turns."""

    def backlogged(tenants: int) -> Stage:
        stage = Stage(2 * SLOTS, FAIR)
        names = [Tenant(str(number), 1.0 + number % 3) for number in range(tenants)]
        for number in range(1500):
            stage.submit(mixed(str(number), names[number % tenants], number))
        return stage

    one, thousand = backlogged(1), backlogged(1000)
    return median(step_s(thousand) / step_s(one) for _ in range(120))


def test_a_thousand_tenants_cost_what_one_does() -> None:
    """One of a few, for the sake of machines that are busy with something else."""
    assert any(a_thousand_to_one() <= 1.1 for _ in range(4))
