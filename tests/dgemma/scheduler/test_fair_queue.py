"""The queues by themselves: jobs without a scheduler, one slot at a time or several."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from dgemma.scheduler.fair_queue import FairQueue
from dgemma.scheduler.line import ArrivalQueue, Queue
from dgemma.scheduler.tenancy import Limits, Tenant


@dataclass(eq=False)
class Turn:
    """A job of one turn; it needs `rows`, which may not be what was expected."""

    tenant: Tenant
    name: str = ""
    priority: int = 0
    turn_rows: float = 10.0
    rows: int = 10
    context_rows: int = 1
    rows_had: int = 0


def serve(queue: Queue[Turn], turns: int) -> Counter[str]:
    """Rows that each tenant gets, one job after another."""
    served: Counter[str] = Counter()
    for _ in range(turns):
        job = queue.pop()
        assert job is not None
        for _ in range(job.rows):
            job.rows_had += 1
        queue.end(job)
        served[job.tenant.name] += job.rows
    return served


def order(queue: Queue[Turn]) -> list[str]:
    names = []
    while job := queue.pop():
        names.append(job.name)
        job.rows_had += job.rows
        queue.end(job)
    return names


A, B, C = (Tenant(name, weight) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 4.0)))


def test_backlogged_tenants_are_served_by_their_weights() -> None:
    queue = FairQueue[Turn]()
    for tenant in (A, B, C):
        for _ in range(200):
            queue.push(Turn(tenant))
    served = serve(queue, 210)
    for tenant in (A, B, C):
        assert served[tenant.name] == pytest.approx(2100 * tenant.weight / 7, rel=0.05)


def test_what_was_really_spent_counts_whatever_was_expected() -> None:
    queue = FairQueue[Turn]()
    same = Tenant("d")
    for _ in range(200):
        queue.push(Turn(A, rows=40))  # four times what it says
        queue.push(Turn(same, turn_rows=40.0, rows=10))  # a quarter
    served = serve(queue, 150)
    assert served["a"] == pytest.approx(served["d"], rel=0.05)


def test_the_plain_queue_does_neither() -> None:
    queue = ArrivalQueue[Turn]()
    for _ in range(100):
        queue.push(Turn(A))
    for _ in range(100):
        queue.push(Turn(C))
    assert serve(queue, 150) == {"a": 1000, "c": 500}


def test_an_idle_tenant_saves_nothing_up() -> None:
    queue, late = FairQueue[Turn](), Tenant("late")
    for _ in range(300):
        queue.push(Turn(A))
    serve(queue, 100)
    for _ in range(100):
        queue.push(Turn(late))
    served = serve(queue, 40)
    assert served["late"] == pytest.approx(served["a"], abs=10)


def test_what_was_had_while_nobody_waited_is_not_held_against_anybody() -> None:
    queue, other = FairQueue[Turn](), Tenant("other")
    for _ in range(100):
        queue.push(Turn(A))
        serve(queue, 1)
    for _ in range(50):
        queue.push(Turn(A))
        queue.push(Turn(other))
    served = serve(queue, 40)
    assert served["other"] == pytest.approx(served["a"], abs=10)


def test_free_slots_are_shared_before_anything_is_spent() -> None:
    queue, other = FairQueue[Turn](), Tenant("other")
    for _ in range(8):
        queue.push(Turn(A))
    for _ in range(8):
        queue.push(Turn(other))
    first = [queue.pop() for _ in range(8)]
    assert Counter(job.tenant.name for job in first if job) == {"a": 4, "other": 4}


def test_of_one_tenant_priorities_go_first_and_then_who_came_first() -> None:
    queue = FairQueue[Turn]()
    for name, priority in (("1", 0), ("2", 5), ("3", 0), ("4", 5), ("5", -1)):
        queue.push(Turn(A, name, priority))
    assert order(queue) == ["2", "4", "1", "3", "5"]


def test_the_priority_of_one_tenant_is_nothing_to_another() -> None:
    queue, other = FairQueue[Turn](), Tenant("other")
    for number in range(3):
        queue.push(Turn(A, f"a{number}", priority=9))
        queue.push(Turn(other, f"o{number}"))
    assert order(queue) == ["a0", "o0", "a1", "o1", "a2", "o2"]


@pytest.mark.parametrize("kind", [FairQueue, ArrivalQueue])
def test_no_tenant_runs_more_at_a_time_than_it_may(
    kind: type[FairQueue[Turn]] | type[ArrivalQueue[Turn]],
) -> None:
    queue: Queue[Turn] = kind()
    capped = Tenant("capped", limits=Limits(max_running=2))
    for number in range(4):
        queue.push(Turn(capped, f"c{number}"))
    queue.push(Turn(A, "a"))
    running = [queue.pop() for _ in range(4)]
    assert sorted(job.name for job in running if job) == ["a", "c0", "c1"]
    assert (queue.running(capped), queue.waiting(capped), len(queue)) == (2, 2, 2)
    first = next(job for job in running if job and job.name == "c0")
    queue.end(first)
    again = queue.pop()
    assert again is not None and again.name == "c2"


@pytest.mark.parametrize("kind", [FairQueue, ArrivalQueue])
def test_what_is_removed_is_gone(
    kind: type[FairQueue[Turn]] | type[ArrivalQueue[Turn]],
) -> None:
    queue: Queue[Turn] = kind()
    jobs = [Turn(A, str(number)) for number in range(4)]
    for job in jobs:
        queue.push(job)
    queue.remove(jobs[0])
    queue.remove(jobs[2])
    assert len(queue) == queue.waiting(A) == 2
    assert order(queue) == ["1", "3"]
    assert (len(queue), queue.waiting(A), queue.running(A)) == (0, 0, 0)


# Block borders


def test_a_job_keeps_its_slot_while_nobody_waits() -> None:
    queue, job = FairQueue[Turn](), Turn(A)
    queue.push(job)
    assert queue.pop() is job
    for _ in range(10):
        job.rows_had += 10
        assert not queue.border(job)
    assert queue.running(A) == 1


def test_a_job_yields_to_another_tenant_that_is_owed_a_turn_and_goes_on_next() -> None:
    queue, other = FairQueue[Turn](), Tenant("other")
    job, owed = Turn(A, "a"), Turn(other, "o")
    queue.push(job)
    queue.pop()
    queue.push(owed)
    queue.push(Turn(A, "later"))
    borders = 0
    while True:
        job.rows_had += 10
        borders += 1
        if queue.border(job):
            break
    assert borders <= 2
    assert (queue.running(A), queue.waiting(A)) == (0, 2)
    assert order(queue) == ["o", "a", "later"]


def test_a_job_whose_context_costs_more_keeps_its_slot_for_longer() -> None:
    held = []
    for context_rows in (1, 50, 100):
        queue, job = FairQueue[Turn](), Turn(A, context_rows=context_rows)
        queue.push(job)
        queue.pop()
        queue.push(Turn(Tenant("other")))
        turns = 1
        job.rows_had += 10
        while not queue.border(job):
            job.rows_had += 10
            turns += 1
        held.append(turns)
    assert held == [2, 6, 11]


def test_a_heavier_tenant_keeps_its_slot_for_more_turns() -> None:
    queue = FairQueue[Turn]()
    held: Counter[str] = Counter()
    jobs = [Turn(A), Turn(C)]
    for job in jobs:
        queue.push(job)
    running = queue.pop()
    for _ in range(100):
        assert running is not None
        running.rows_had += 10
        held[running.tenant.name] += 10
        if queue.border(running):
            running = queue.pop()
    assert held["c"] == pytest.approx(4 * held["a"], rel=0.1)


def test_a_job_yields_to_a_higher_priority_of_its_own_tenant_only() -> None:
    queue, job = FairQueue[Turn](), Turn(A)
    queue.push(job)
    queue.pop()
    queue.push(Turn(A))
    job.rows_had += 10
    assert not queue.border(job)
    queue.push(Turn(A, priority=1))
    job.rows_had += 10
    assert queue.border(job)


def test_a_higher_priority_goes_first_though_its_tenant_runs_all_that_it_may() -> None:
    queue, narrow = FairQueue[Turn](), Tenant("narrow", limits=Limits(max_running=1))
    job, urgent = Turn(narrow), Turn(narrow, priority=1)
    queue.push(job)
    queue.pop()
    queue.push(urgent)
    job.rows_had += 10
    assert queue.pop() is None
    assert queue.border(job)
    assert queue.pop() is urgent


def test_a_tenant_may_change_while_its_jobs_run() -> None:
    queue, job = FairQueue[Turn](), Turn(A)
    queue.push(job)
    queue.pop()
    queue.push(Turn(Tenant("a", 3.0, Limits(max_running=1))))
    assert queue.pop() is None
    queue.end(job)
    assert queue.pop() is not None
