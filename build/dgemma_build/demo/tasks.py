"""What the demo checkpoint is taught, as batches of token ids.

Knows prompts, answers and noise levels of the two skills (Sudoku, counting); knows no network.
Shapes: B sequences, M canvases of each, P context length, L canvas length.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgemma_build.demo import sudoku
from dgemma_build.demo.prompts import COUNT_LIMIT, count_answer, count_prompt
from dgemma_build.demo.vocabulary import EOS, PAD, TURN_END, VOCAB_SIZE, chat_prompt, to_ids

Ints = NDArray[np.int64]

MOST_BLANKS = 50
HEADER = chat_prompt("x").index(to_ids("x")[0])  # where the user's text begins


@dataclass(frozen=True)
class Batch:
    context: Tensor  # int64 [B, P]
    start: Tensor  # int64 [B], context tokens that are real
    target: Tensor  # int64 [B, L]
    clue: Tensor  # bool [B, L], what a template would pin


class SudokuSource:
    """Endless puzzles: grids from the real generator under random symmetries of Sudoku.

    A symmetry (relabelled digits, permuted bands, rows, stacks and columns, transposition) maps
    puzzles with one solution to puzzles with one solution.
    """

    def __init__(self, grids: int, seed: int, processes: int = 2) -> None:
        with Pool(processes) as pool:
            chunks = pool.map(_dig_many, [(seed * 1000 + i, grids // 64 + 1) for i in range(64)])
        pairs = [pair for chunk in chunks for pair in chunk]
        self.solutions = np.array([s for s, _ in pairs], dtype=np.int64)
        self.ranks = np.array([r for _, r in pairs], dtype=np.int64)

    def draw(
        self, rng: np.random.Generator, blanks: Ints
    ) -> tuple[Ints, Ints]:  # puzzles (0 = blank) and solutions, [B, 81]
        n = len(blanks)
        pick = rng.integers(len(self.solutions), size=n)
        rows, cols = _line_order(rng, n), _line_order(rng, n)
        cells = rows[:, :, None] * 9 + cols[:, None, :]
        flip = rng.random(n) < 0.5
        cells[flip] = cells[flip].transpose(0, 2, 1)
        cells = cells.reshape(n, 81)
        digits = np.concatenate(
            [np.zeros((n, 1), np.int64), rng.random((n, 9)).argsort(1) + 1], axis=1
        )
        solution = np.take_along_axis(self.solutions[pick], cells, 1)
        solution = np.take_along_axis(digits, solution, 1)
        rank = np.take_along_axis(self.ranks[pick], cells, 1)
        return np.where(rank < blanks[:, None], 0, solution), solution

    def batch(self, rng: np.random.Generator, blanks: Ints, length: int) -> Batch:
        puzzle, solution = self.draw(rng, blanks)
        text, answer = _grid_ids(puzzle), _grid_ids(solution)
        template = np.array(chat_prompt("x" * 89))
        context = np.broadcast_to(template, (len(blanks), len(template))).copy()
        context[:, HEADER : HEADER + 89] = text
        target = np.full((len(blanks), length), EOS)
        target[:, :89], target[:, 89] = answer, TURN_END
        clue = np.ones((len(blanks), length), bool)
        clue[:, :89] = text == answer
        start = np.full(len(blanks), context.shape[1])
        return Batch(*(torch.tensor(array) for array in (context, start, target, clue)))


def count_blocks(length: int) -> int:
    """Canvases of the longest answer."""
    return -(-(len(to_ids(count_answer(0))) + 1) // length)


def count_batch(rng: np.random.Generator, size: int, block: int, length: int) -> Batch:
    """Counting, canvas number `block` of each answer; short answers only have the first."""
    rows: list[list[int]] = []
    starts: list[int] = []
    targets: list[list[int]] = []
    while len(rows) < size:
        first = int(rng.integers(0, COUNT_LIMIT + 1))
        answer = [*to_ids(count_answer(first)), TURN_END]
        if len(answer) <= block * length:
            continue
        rows.append(chat_prompt(count_prompt(first)) + answer[: block * length])
        starts.append(len(rows[-1]))
        canvas = answer[block * length : (block + 1) * length]
        targets.append(canvas + [EOS] * (length - len(canvas)))
    width = len(chat_prompt(count_prompt(0))) + block * length
    context = torch.full((size, width), PAD)
    for i, row in enumerate(rows):
        context[i, : len(row)] = torch.tensor(row)
    clue = torch.zeros(size, length, dtype=torch.bool)
    return Batch(context, torch.tensor(starts), torch.tensor(targets), clue)


def corrupt(batch: Batch, copies: int, pinned: float) -> tuple[Tensor, Tensor, Tensor]:
    """Noised canvases, their targets and what is scored: each `[B * copies, L]`.

    Each token is replaced by a uniform random one with probability t, t ~ U(1e-3, 1) per canvas,
    and t = 1 (the first step of every answer) for one canvas in eight. With probability `pinned`
    a canvas keeps its clues, as a template would.
    """
    target = batch.target.repeat_interleave(copies, 0)
    n, length = target.shape
    t = torch.rand(n, 1).clamp_min(1e-3)
    t[torch.rand(n, 1) < 1 / 8] = 1.0
    template = batch.clue.any(1).repeat_interleave(copies, 0)[:, None] & (torch.rand(n, 1) < pinned)
    hold = batch.clue.repeat_interleave(copies, 0) & template
    # A template ends in EOS, where an answer to a prompt ends its turn first.
    target = torch.where(template & (target == TURN_END), EOS, target)
    noisy = (torch.rand(n, length) < t) & ~hold
    canvas = torch.where(noisy, torch.randint(VOCAB_SIZE, (n, length)), target)
    return canvas, target, ~hold


def _dig_many(job: tuple[int, int]) -> list[tuple[list[int], list[int]]]:
    """Solutions with each cell's rank in a digging order (99: never dug)."""
    rng = random.Random(job[0])
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < job[1]:
        solution = sudoku.random_solution(rng)
        order = sudoku.dig(solution, MOST_BLANKS, rng)
        if len(order) < MOST_BLANKS:
            continue
        rank = [99] * sudoku.CELLS
        for position, cell in enumerate(order):
            rank[cell] = position
        pairs.append((solution, rank))
    return pairs


def _line_order(rng: np.random.Generator, n: int) -> Ints:
    """Random permutations of nine lines that keep bands of three together, `[n, 9]`."""
    bands = rng.random((n, 3)).argsort(1)
    within = rng.random((n, 3, 3)).argsort(2)
    order: Ints = (bands[:, :, None] * 3 + within).reshape(n, 9)
    return order


def _grid_ids(grids: Ints) -> Ints:
    """Token ids of grids `[n, 81]` as nine lines, `[n, 89]`."""
    lookup = np.array([to_ids(c)[0] for c in ".123456789"])
    lines = np.full((len(grids), 9, 10), to_ids("\n")[0])
    lines[:, :, :9] = lookup[grids].reshape(-1, 9, 9)
    return lines.reshape(-1, 90)[:, :89]
