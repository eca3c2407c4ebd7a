from __future__ import annotations

import gc
import threading
import time

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
