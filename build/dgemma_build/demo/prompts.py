"""The demo's skills as requests and checks: what to ask, and whether an answer is right.

Knows the wording that the checkpoint was taught; knows neither tokens nor services.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Protocol

from dgemma_build.demo import sudoku

COUNT_LIMIT = 99


class Task(Protocol):
    """A request whose answer a program can check."""

    @property
    def prompt(self) -> str: ...

    @property
    def template(self) -> str | None: ...

    def is_right(self, answer: str) -> bool: ...


@dataclass(frozen=True)
class SudokuTask:
    """A puzzle as nine lines; with `on_grid` its clues are also pinned by a template."""

    grid: tuple[int, ...]
    on_grid: bool = False

    @property
    def prompt(self) -> str:
        return sudoku.to_text(self.grid)

    @property
    def template(self) -> str | None:
        return grid_template(self.prompt) if self.on_grid else None

    def is_right(self, answer: str) -> bool:
        return sudoku.is_solved(self.grid, answer)


@dataclass(frozen=True)
class CountTask:
    """`count from 07`, answered by 07 to 99, two digits each, between spaces."""

    first: int

    @property
    def prompt(self) -> str:
        return count_prompt(self.first)

    @property
    def template(self) -> str | None:
        return None

    def is_right(self, answer: str) -> bool:
        return answer == count_answer(self.first)


def count_prompt(first: int) -> str:
    return f"count from {first:02}"


def count_answer(first: int) -> str:
    return " ".join(f"{number:02}" for number in range(first, COUNT_LIMIT + 1))


def grid_template(puzzle: str) -> str:
    """The puzzle with each run of blanks as a gap of that many tokens."""
    runs = itertools.groupby(puzzle, key=lambda character: character == sudoku.BLANK)
    return "".join(f"<|gap:{len(list(run))}|>" if blank else "".join(run) for blank, run in runs)


def sudokus(count: int, blanks: int, seed: int, on_grid: bool = False) -> list[SudokuTask]:
    """Puzzles with one solution each, from the generator; the seed decides them all."""
    rng = random.Random(f"{seed}/{blanks}")
    return [SudokuTask(tuple(sudoku.puzzle(blanks, rng)[0]), on_grid) for _ in range(count)]


def counts(count: int, seed: int) -> list[CountTask]:
    """Beginnings within 00..99; answers take one to four canvases of the demo's."""
    rng = random.Random(f"{seed}/count")
    return [CountTask(rng.randint(0, COUNT_LIMIT)) for _ in range(count)]
