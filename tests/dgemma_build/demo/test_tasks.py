from __future__ import annotations

import numpy as np
import pytest
import torch

from dgemma_build.demo import sudoku
from dgemma_build.demo.prompts import count_answer, count_prompt
from dgemma_build.demo.tasks import (
    MOST_BLANKS,
    Batch,
    SudokuSource,
    corrupt,
    count_batch,
    count_blocks,
)
from dgemma_build.demo.vocabulary import (
    EOS,
    FIRST_BYTE,
    TURN_END,
    VOCAB_SIZE,
    chat_prompt,
    to_ids,
)

L = 96


@pytest.fixture(scope="module")
def source() -> SudokuSource:
    return SudokuSource(64, seed=1, processes=1)


def text(ids: torch.Tensor) -> str:
    return bytes(i - FIRST_BYTE for i in ids.tolist() if i >= FIRST_BYTE).decode()


# Sudoku


@pytest.mark.parametrize("blanks", [0, 5, 30, MOST_BLANKS])
def test_drawn_puzzles_have_their_blanks_and_one_solution(
    source: SudokuSource, blanks: int
) -> None:
    puzzles, solutions = source.draw(np.random.default_rng(3), np.full(8, blanks))
    for grid, solution in zip(puzzles.tolist(), solutions.tolist(), strict=True):
        assert grid.count(0) == blanks
        assert sudoku.is_solved(grid, sudoku.to_text(solution))
        assert sudoku.solve(grid) == [solution]


def test_drawn_puzzles_differ_though_their_grids_repeat(source: SudokuSource) -> None:
    many = 4 * len(source.solutions)
    _, solutions = source.draw(np.random.default_rng(0), np.full(many, 10))
    assert len({tuple(solution) for solution in solutions.tolist()}) == many


def test_a_seed_decides_the_source(source: SudokuSource) -> None:
    again = SudokuSource(64, seed=1, processes=1)
    other = SudokuSource(64, seed=2, processes=1)
    assert np.array_equal(source.solutions, again.solutions)
    assert np.array_equal(source.ranks, again.ranks)
    assert not np.array_equal(source.solutions, other.solutions)


def test_a_sudoku_batch_is_prompts_and_answers(source: SudokuSource) -> None:
    blanks = np.array([5, 20, 40])
    batch = source.batch(np.random.default_rng(4), blanks, L)
    for index in range(3):
        prompt, answer = text(batch.context[index]), text(batch.target[index])
        assert batch.context[index].tolist() == chat_prompt(prompt[:89])
        puzzle = sudoku.from_text(prompt[:89])
        assert puzzle is not None and puzzle.count(0) == blanks[index]
        assert sudoku.is_solved(puzzle, answer)
        assert batch.target[index, 89:].tolist() == [TURN_END] + [EOS] * (L - 90)
        assert int(batch.start[index]) == len(batch.context[index])
        held = [p == a for p, a in zip(prompt[:89], answer, strict=True)]
        assert batch.clue[index].tolist() == held + [True] * (L - 89)


# Counting


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_a_counting_batch_is_one_canvas_of_each_answer(block: int) -> None:
    batch = count_batch(np.random.default_rng(5), 16, block, L)
    for index in range(16):
        start = int(batch.start[index])
        known = batch.context[index, :start].tolist()
        first = int(bytes(i - FIRST_BYTE for i in known if i >= FIRST_BYTE).split(b"from ")[1][:2])
        prompt = chat_prompt(count_prompt(first))
        answer = [*to_ids(count_answer(first)), TURN_END]
        answer += [EOS] * (4 * L - len(answer))
        assert known == prompt + answer[: block * L]
        assert batch.target[index].tolist() == answer[block * L : (block + 1) * L]
        assert batch.target[index].tolist() != [EOS] * L
    assert not batch.clue.any()


def test_the_longest_answer_decides_the_number_of_canvases() -> None:
    assert count_blocks(L) == -(-(99 * 3 + 2 + 1) // L) == 4
    assert count_blocks(300) == 1
    assert count_blocks(299) == 2


# Noise


def batch_of(size: int, clues: int) -> Batch:
    """`clues` positions that a template would pin, then a turn's end, then EOS."""
    target = torch.full((size, L), EOS)
    target[:, :89], target[:, 89] = FIRST_BYTE + 50, TURN_END
    clue = torch.zeros(size, L, dtype=torch.bool)
    clue[:, :clues] = True
    if clues:
        clue[:, 89:] = True
    return Batch(torch.zeros(size, 4, dtype=torch.long), torch.full((size,), 4), target, clue)


def test_tokens_are_replaced_by_uniform_ones_and_all_are_scored() -> None:
    torch.manual_seed(0)
    batch = batch_of(2000, 0)
    canvas, target, scored = corrupt(batch, 2, pinned=0.0)
    assert canvas.shape == target.shape == scored.shape == (4000, L)
    assert bool(scored.all())
    assert torch.equal(target, batch.target.repeat_interleave(2, 0))
    changed = canvas != target
    share = changed.float().mean(1)
    assert 0.45 < float(share.mean()) < 0.65  # t is uniform, and 1 for one canvas in eight
    assert 0.1 < float((share > 0.97).float().mean()) < 0.2
    counts = torch.bincount(canvas[changed], minlength=VOCAB_SIZE).double()
    counts = counts[10:100]  # tokens that no target holds, so that each replacement shows
    assert bool(((counts - counts.mean()).abs() < 6 * counts.mean().sqrt()).all())


def test_a_template_holds_its_clues_and_ends_with_eos() -> None:
    torch.manual_seed(0)
    batch = batch_of(50, 60)
    canvas, target, scored = corrupt(batch, 3, pinned=1.0)
    held = batch.clue.repeat_interleave(3, 0)
    assert torch.equal(scored, ~held)
    assert torch.equal(canvas[held], target[held])
    assert (target[:, 89:] == EOS).all()


def test_only_a_share_of_canvases_keeps_its_clues() -> None:
    torch.manual_seed(0)
    _, target, scored = corrupt(batch_of(500, 60), 4, pinned=0.25)
    templates = ~scored.all(1)
    assert 0.2 < float(templates.float().mean()) < 0.3
    assert (target[templates][:, 89] == EOS).all()
    assert (target[~templates][:, 89] == TURN_END).all()


def test_without_clues_there_is_no_template() -> None:
    _, target, scored = corrupt(batch_of(50, 0), 2, pinned=1.0)
    assert bool(scored.all()) and bool((target[:, 89] == TURN_END).all())
