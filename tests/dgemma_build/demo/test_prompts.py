from __future__ import annotations

import random
import re

import pytest

from dgemma.template import FREE, parse_template
from dgemma_build.demo import sudoku
from dgemma_build.demo.prompts import (
    COUNT_LIMIT,
    CountTask,
    SudokuTask,
    Task,
    count_answer,
    count_prompt,
    counts,
    grid_template,
    sudokus,
)
from dgemma_build.demo.vocabulary import to_ids

GRID, SOLUTION = sudoku.puzzle(30, random.Random(5))


def test_counting_ends_at_the_limit_two_digits_each() -> None:
    assert count_prompt(7) == "count from 07"
    assert count_answer(96) == "96 97 98 99"
    assert count_answer(99) == "99"
    numbers = count_answer(0).split(" ")
    assert [int(number) for number in numbers] == list(range(COUNT_LIMIT + 1))
    assert all(len(number) == 2 for number in numbers)


def test_a_count_is_right_to_the_letter() -> None:
    task = CountTask(97)
    assert task.is_right("97 98 99")
    assert task.template is None
    for wrong in ("97 98", "97 98 99 ", "97  98 99", "97 98 98", "", " 97 98 99"):
        assert not task.is_right(wrong)


def test_a_sudokus_prompt_is_its_grid_and_its_answer_the_solution() -> None:
    task = SudokuTask(tuple(GRID))
    assert task.prompt == sudoku.to_text(GRID)
    assert task.template is None
    assert task.is_right(sudoku.to_text(SOLUTION))
    assert not task.is_right(sudoku.to_text(GRID))


def test_on_the_grid_the_clues_are_pinned_and_the_blanks_are_gaps() -> None:
    task = SudokuTask(tuple(GRID), on_grid=True)
    assert task.template is not None
    positions = parse_template(task.template, to_ids, "max_new_tokens", 200)
    wanted = [FREE if character == "." else to_ids(character)[0] for character in task.prompt]
    assert list(positions) == wanted
    assert positions.count(FREE) == 30


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("12..5", "12<|gap:2|>5"),
        (".", "<|gap:1|>"),
        (".1.", "<|gap:1|>1<|gap:1|>"),
        ("..\n..", "<|gap:2|>\n<|gap:2|>"),
        ("123", "123"),
    ],
)
def test_each_run_of_blanks_is_one_gap(text: str, template: str) -> None:
    assert grid_template(text) == template


@pytest.mark.parametrize("blanks", [10, 30])
def test_a_seed_decides_the_puzzles(blanks: int) -> None:
    tasks = sudokus(4, blanks, seed=1)
    assert tasks == sudokus(4, blanks, seed=1)
    assert tasks[:2] == sudokus(2, blanks, seed=1)
    assert len({task.grid for task in tasks + sudokus(4, blanks, seed=2)}) == 8
    for task in tasks:
        assert task.grid.count(0) == blanks
        assert len(sudoku.solve(task.grid)) == 1


def test_puzzles_on_the_grid_are_the_same_puzzles() -> None:
    plain, pinned = sudokus(2, 20, seed=3), sudokus(2, 20, seed=3, on_grid=True)
    assert [task.prompt for task in plain] == [task.prompt for task in pinned]
    assert all(task.template for task in pinned)


def test_a_seed_decides_the_counts_and_they_span_canvases() -> None:
    tasks: list[CountTask] = counts(200, seed=1)
    assert tasks == counts(200, seed=1) != counts(200, seed=2)
    answers = [count_answer(int(re.findall("[0-9]+", task.prompt)[0])) for task in tasks]
    assert all(task.is_right(answer) for task, answer in zip(tasks, answers, strict=True))
    assert {-(-(len(to_ids(answer)) + 1) // 96) for answer in answers} == {1, 2, 3, 4}


def test_both_skills_are_tasks() -> None:
    tasks: list[Task] = [*sudokus(1, 5, seed=0), *counts(1, seed=0)]
    assert all(task.prompt and not task.is_right("") for task in tasks)
