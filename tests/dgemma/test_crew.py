from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from dgemma.crew import Crew


def test_every_part_runs_on_a_thread_of_its_own_and_the_last_on_the_callers() -> None:
    crew, seen, barrier = Crew(3), dict[int, int](), threading.Barrier(3)

    def part(index: int) -> None:
        barrier.wait(timeout=10)  # all three at the same time
        seen[index] = threading.get_ident()

    for _ in range(50):
        crew.run([lambda index=index: part(index) for index in range(3)])  # type: ignore[misc]
    assert len(set(seen.values())) == 3
    assert seen[2] == threading.get_ident()


def test_a_job_may_have_fewer_parts() -> None:
    crew, seen = Crew(3), list[str]()
    crew.run([lambda: seen.append("only")])
    crew.run([lambda: seen.append("first"), lambda: seen.append("second")])
    assert seen[0] == "only" and sorted(seen[1:]) == ["first", "second"]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_raised_when_no_part_runs_any_more(failing: int) -> None:
    crew, ended = Crew(2), list[int]()

    def part(index: int) -> None:
        if index == failing:
            raise ValueError(f"part {index}")
        time.sleep(0.05)
        ended.append(index)

    with pytest.raises(ValueError, match=f"part {failing}"):
        crew.run([lambda: part(0), lambda: part(1)])
    assert ended == [1 - failing]
    crew.run([lambda: ended.append(7), lambda: ended.append(8)])  # it goes on
    assert sorted(ended[1:]) == [7, 8]


def test_parts_that_take_long_are_waited_for() -> None:
    ended: list[int] = []

    def slow() -> None:
        time.sleep(0.1)
        ended.append(1)

    Crew(2).run([slow, lambda: None])
    assert ended == [1]


def test_its_threads_end_with_it() -> None:
    before = set(threading.enumerate())
    crew = Crew(4)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    crew.run([lambda: None] * 4)
    del crew
    gc.collect()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def homes(crew: Crew) -> list[set[int]]:
    """The cores on which the parts of a job may run, in the order of the parts."""
    seen: dict[int, set[int]] = {}
    crew.run(
        [partial(lambda i: seen.update({i: os.sched_getaffinity(0)}), i) for i in range(crew.size)]
    )
    return [seen[index] for index in sorted(seen)]


def test_a_crew_for_all_cores_has_one_of_its_own_for_each_thread() -> None:
    cores = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as thread:
        own = thread.submit(homes, Crew(len(cores))).result()
    assert len(own) == len(cores)
    assert sorted(core for home in own for core in home) == sorted(cores)


def test_any_other_crew_goes_where_there_is_room() -> None:
    cores = os.sched_getaffinity(0)
    for size in (max(1, len(cores) - 1), len(cores) + 1):
        with ThreadPoolExecutor(1) as thread:
            assert all(home == cores for home in thread.submit(homes, Crew(size)).result())


def test_what_the_main_thread_starts_may_run_anywhere() -> None:
    cores = os.sched_getaffinity(0)
    assert homes(Crew(len(cores)))[-1] == cores
