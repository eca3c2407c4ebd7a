"""Sudoku: random complete grids, puzzles with one solution, and a checker.

Knows the rules of 9x9 Sudoku and nothing about models or tokens. A grid is a list of 81 ints,
row by row, 0 for a blank. Its text form is nine lines of nine characters, `.` for a blank.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

CELLS = 81
BLANK = "."

_ROW = [c // 9 for c in range(CELLS)]
_COL = [c % 9 for c in range(CELLS)]
_BOX = [c // 27 * 3 + c % 9 // 3 for c in range(CELLS)]
_DIGITS = [[d for d in range(9) if mask >> d & 1] for mask in range(512)]


class _Search:
    """Depth-first search over the cells with the fewest candidates first."""

    def __init__(self, grid: Sequence[int], rng: random.Random | None = None) -> None:
        self.grid = list(grid)
        self.rng = rng
        self.rows, self.cols, self.boxes = [511] * 9, [511] * 9, [511] * 9
        self.consistent = True
        for cell, digit in enumerate(self.grid):
            if digit:
                bit = 1 << digit - 1
                self.consistent &= bool(self._candidates(cell) & bit)
                self._flip(cell, bit)
        self.blanks = [c for c, d in enumerate(self.grid) if not d]

    def _candidates(self, cell: int) -> int:
        return self.rows[_ROW[cell]] & self.cols[_COL[cell]] & self.boxes[_BOX[cell]]

    def _flip(self, cell: int, bit: int) -> None:
        self.rows[_ROW[cell]] ^= bit
        self.cols[_COL[cell]] ^= bit
        self.boxes[_BOX[cell]] ^= bit

    def solutions(self, limit: int) -> list[list[int]]:
        found: list[list[int]] = []
        if self.consistent:
            self._descend(found, limit)
        return found

    def _descend(self, found: list[list[int]], limit: int) -> None:
        best, best_index, fewest = 0, -1, 10
        for index, cell in enumerate(self.blanks):
            candidates = self.rows[_ROW[cell]] & self.cols[_COL[cell]] & self.boxes[_BOX[cell]]
            count = len(_DIGITS[candidates])
            if count < fewest:
                best, best_index, fewest = candidates, index, count
                if count < 2:
                    break
        if best_index < 0:
            found.append(list(self.grid))
            return
        blanks = self.blanks
        cell = blanks[best_index]
        blanks[best_index] = blanks[-1]
        blanks.pop()
        digits = list(_DIGITS[best])
        if self.rng:
            self.rng.shuffle(digits)
        for digit in digits:
            self.grid[cell] = digit + 1
            self._flip(cell, 1 << digit)
            self._descend(found, limit)
            self._flip(cell, 1 << digit)
            if len(found) >= limit:
                break
        self.grid[cell] = 0
        blanks.append(cell)
        blanks[best_index], blanks[-1] = blanks[-1], blanks[best_index]


def solve(grid: Sequence[int], limit: int = 2) -> list[list[int]]:
    """Up to `limit` solutions of `grid`; two of them mean that the puzzle is not unique."""
    return _Search(grid).solutions(limit)


def random_solution(rng: random.Random) -> list[int]:
    """A complete grid found by randomised backtracking from an empty one."""
    return _Search([0] * CELLS, rng).solutions(1)[0]


def dig(solution: Sequence[int], blanks: int, rng: random.Random) -> list[int]:
    """Cells of `solution` to blank, in an order in which every prefix leaves a unique puzzle.

    Cells are tried once each in random order, so fewer than `blanks` may come back.
    """
    grid, order = list(solution), list[int]()
    for cell in rng.sample(range(CELLS), CELLS):
        if len(order) == blanks:
            break
        grid[cell] = 0
        if len(solve(grid)) == 1:
            order.append(cell)
        else:
            grid[cell] = solution[cell]
    return order


def puzzle(blanks: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """A puzzle with exactly `blanks` blanks and one solution, as (puzzle, solution)."""
    while True:
        solution = random_solution(rng)
        order = dig(solution, blanks, rng)
        if len(order) == blanks:
            grid = list(solution)
            for cell in order:
                grid[cell] = 0
            return grid, solution


def to_text(grid: Sequence[int]) -> str:
    """Nine lines of nine characters; blanks are `.`."""
    cells = [str(d) if d else BLANK for d in grid]
    return "\n".join("".join(cells[r * 9 : r * 9 + 9]) for r in range(9))


def from_text(text: str) -> list[int] | None:
    """The grid in `text`, or None where it is not nine lines of nine digits or blanks."""
    lines = text.strip().split("\n")
    if len(lines) != 9 or any(len(line) != 9 for line in lines):
        return None
    cells = "".join(lines)
    if not all(ch in "123456789" + BLANK for ch in cells):
        return None
    return [0 if ch == BLANK else int(ch) for ch in cells]


def is_solved(puzzle_grid: Sequence[int], answer: str) -> bool:
    """Whether `answer` is a complete, correct grid that keeps every clue of the puzzle."""
    grid = from_text(answer)
    if grid is None or 0 in grid:
        return False
    if any(clue and clue != digit for clue, digit in zip(puzzle_grid, grid, strict=True)):
        return False
    units = [{(kind[c], d) for c, d in enumerate(grid)} for kind in (_ROW, _COL, _BOX)]
    return all(len(unit) == CELLS for unit in units)
