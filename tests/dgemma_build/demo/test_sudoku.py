from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_build.demo.sudoku import (
    CELLS,
    dig,
    from_text,
    is_solved,
    puzzle,
    random_solution,
    solve,
    to_text,
)

SEEDS = st.integers(0, 2**32)
GRIDS = st.lists(st.integers(0, 9), min_size=CELLS, max_size=CELLS)


def units() -> list[list[int]]:
    """Cells of each row, column and box, as the rules of the game say them."""
    rows = [[9 * r + c for c in range(9)] for r in range(9)]
    columns = [[9 * r + c for r in range(9)] for c in range(9)]
    boxes = [
        [9 * (3 * band + r) + 3 * stack + c for r in range(3) for c in range(3)]
        for band in range(3)
        for stack in range(3)
    ]
    return rows + columns + boxes


def is_complete(grid: Sequence[int]) -> bool:
    return all(sorted(grid[cell] for cell in unit) == list(range(1, 10)) for unit in units())


@given(SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_random_grid_obeys_the_rules(seed: int) -> None:
    assert is_complete(random_solution(random.Random(seed)))


def test_random_grids_differ_and_a_seed_decides_them() -> None:
    grids = [tuple(random_solution(random.Random(seed))) for seed in range(20)]
    assert len(set(grids)) == 20
    assert grids[3] == tuple(random_solution(random.Random(3)))


@pytest.mark.parametrize("blanks", [0, 1, 30, 45, 50])
def test_a_puzzle_has_exactly_its_blanks_and_one_solution(blanks: int) -> None:
    grid, solution = puzzle(blanks, random.Random(blanks))
    assert grid.count(0) == blanks
    assert is_complete(solution)
    assert all(clue in (0, digit) for clue, digit in zip(grid, solution, strict=True))
    assert solve(grid, limit=5) == [solution]


def test_every_prefix_of_a_digging_order_leaves_one_solution() -> None:
    rng = random.Random(7)
    solution = random_solution(rng)
    order = dig(solution, 50, rng)
    assert len(set(order)) == len(order)
    grid = list(solution)
    for count, cell in enumerate(order, 1):
        grid[cell] = 0
        if count % 10 == 0:
            assert solve(grid) == [solution]


def test_two_solutions_are_found_up_to_the_limit() -> None:
    assert len(solve([0] * CELLS, limit=7)) == 7
    _, solution = puzzle(0, random.Random(1))
    # Where two digits cross in two rows and columns of a pair of boxes, they can be exchanged.
    open_cells = [cell for cell, digit in enumerate(solution) if digit in (1, 2)]
    grid = [0 if cell in open_cells else digit for cell, digit in enumerate(solution)]
    found = solve(grid, limit=10)
    assert len(found) >= 2 and solution in found
    assert all(is_complete(each) for each in found)


@pytest.mark.parametrize("clash", [[(0, 5), (8, 5)], [(0, 5), (72, 5)], [(0, 5), (20, 5)]])
def test_a_grid_that_breaks_the_rules_has_no_solution(clash: list[tuple[int, int]]) -> None:
    grid = [0] * CELLS
    for cell, digit in clash:
        grid[cell] = digit
    assert solve(grid) == []


@given(GRIDS)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_text_and_grid_are_each_others_inverse(grid: list[int]) -> None:
    text = to_text(grid)
    assert [len(line) for line in text.split("\n")] == [9] * 9
    assert from_text(text) == grid
    assert from_text("\n" + text + "\n ") == grid


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "1",
        lambda text: text.replace("\n", ""),
        lambda text: text + "\n123456789",
        lambda text: "x" + text[1:],
        lambda text: "0" + text[1:],
        lambda text: "",
    ],
)
def test_other_text_is_no_grid(change: object) -> None:
    assert callable(change)
    assert from_text(change(to_text([1] * CELLS))) is None


def test_an_answer_must_be_complete_correct_and_keep_the_clues() -> None:
    grid, solution = puzzle(30, random.Random(2))
    assert is_solved(grid, to_text(solution))
    assert not is_solved(grid, to_text(grid))
    assert not is_solved(grid, "no grid")
    for cell in (grid.index(0), next(c for c in range(CELLS) if grid[c])):
        wrong = list(solution)
        wrong[cell] = wrong[cell] % 9 + 1
        assert not is_solved(grid, to_text(wrong))
    exchanged = [{1: 2, 2: 1}.get(digit, digit) for digit in solution]
    assert is_complete(exchanged) and not is_solved(grid, to_text(exchanged))


def test_any_completion_of_an_ambiguous_puzzle_is_right() -> None:
    _, solution = puzzle(0, random.Random(1))
    exchanged = [{1: 2, 2: 1}.get(digit, digit) for digit in solution]
    assert is_solved([0] * CELLS, to_text(solution))
    assert is_solved([0] * CELLS, to_text(exchanged))
