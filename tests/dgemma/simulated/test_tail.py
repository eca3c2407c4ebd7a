from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma.sampling import Sampling
from dgemma.simulated.tail import MEAN_ANSWER, SimulatedTail
from dgemma.tail.tail import ACCEPTED, PINNED, PROVISIONAL, Canvas
from dgemma.template import FREE
from tests.dgemma.scheduler.requests import SAMPLING

L, STOP = 64, 1
WORDS = range(100, 130)
NOTHING = torch.empty(1, 0, 8)
ADAPTIVE = replace(SAMPLING, max_denoising_steps=48, max_new_tokens=16 * L)


def tail() -> SimulatedTail:
    return SimulatedTail(WORDS, STOP, L, later=lambda call: None)


def sampling(seed: int, **more: Any) -> Sampling:
    return replace(ADAPTIVE, seed=seed, **more)


def finished(made: SimulatedTail, canvas: Canvas, wanted: Sampling) -> Canvas:
    while not canvas.is_done(wanted):
        made.step(NOTHING, [(canvas, wanted)])
    return canvas


def run(seed: int, block: int = 0, **more: Any) -> Canvas:
    wanted, made = sampling(seed, **more), tail()
    return finished(made, made.begin(block, wanted, None), wanted)


def test_a_canvas_is_a_function_of_seed_and_block() -> None:
    one, again = run(7, 3), run(7, 3)
    assert one.argmax is not None and again.argmax is not None
    assert (one.step, one.argmax.tolist()) == (again.step, again.argmax.tolist())
    others = [run(seed, block).argmax for seed, block in ((8, 3), (7, 4))]
    assert all(other is not None and not other.equal(one.argmax) for other in others)


def test_neighbours_change_nothing() -> None:
    made = tail()
    wanted = [sampling(seed) for seed in range(8)]
    rows = [(made.begin(0, each, None), each) for each in wanted]
    while live := [row for row in rows if not row[0].is_done(row[1])]:
        made.step(NOTHING, live)
    for seed, (canvas, _) in enumerate(rows):
        alone = run(seed)
        assert alone.argmax is not None and canvas.argmax is not None
        assert (canvas.step, canvas.converged) == (alone.step, alone.converged)
        assert canvas.argmax.equal(alone.argmax)


def test_canvases_converge_or_run_all_their_steps() -> None:
    canvases = [run(seed, confidence_threshold=0.005) for seed in range(300)]
    capped = [canvas for canvas in canvases if not canvas.converged]
    assert 0.13 < len(capped) / len(canvases) < 0.29
    assert {canvas.step for canvas in capped} == {48}
    assert all(canvas.step < 48 for canvas in canvases if canvas.converged)


def test_fewer_steps_are_a_cap_and_a_threshold_of_0_stops_nothing_early() -> None:
    slow = next(seed for seed in range(50) if run(seed).step > 16)
    few = run(slow, max_denoising_steps=16)
    assert (few.step, few.converged) == (16, False)
    assert all(run(seed, confidence_threshold=0.0).step == 48 for seed in range(20))


def test_answers_consist_of_words_and_end_where_they_were_drawn_to() -> None:
    ends = []
    for seed in range(400):
        argmax = run(seed).argmax
        assert argmax is not None
        ids = argmax.tolist()
        assert set(ids) <= {*WORDS, STOP} and ids.count(STOP) <= 1
        ends.append(STOP in ids)
    assert sum(ends) / 400 == pytest.approx(1 - 2.718 ** (-L / MEAN_ANSWER), abs=0.04)


def test_with_ignore_eos_they_do_not_end() -> None:
    ending = next(seed for seed in range(99) if STOP in run(seed).ids.tolist())
    argmax = run(ending, ignore_eos=True).argmax
    assert argmax is not None and STOP not in argmax.tolist()


def test_pinned_tokens_stay_and_a_template_has_its_own_end() -> None:
    made = tail()
    ending = next(seed for seed in range(99) if STOP in run(seed).ids.tolist())
    pinned = torch.full((L,), FREE)
    pinned[10:20], pinned[40:] = 55, STOP
    wanted = sampling(ending)
    canvas = finished(made, made.begin(0, wanted, pinned), wanted)
    assert canvas.argmax is not None
    ids = canvas.argmax.tolist()
    assert ids[10:20] == [55] * 10 and ids[40:] == [STOP] * (L - 40)
    assert STOP not in ids[:40]
    assert set(canvas.states[10:20].tolist()) == {PINNED}


def test_a_draft_shows_more_accepted_tokens_at_every_step() -> None:
    made, wanted = tail(), sampling(3)
    canvas = made.begin(0, wanted, None)
    counts = []
    while not canvas.is_done(wanted):
        made.step(NOTHING, [(canvas, wanted)])
        counts.append(int((canvas.states == ACCEPTED).sum()))
    assert counts == sorted(counts) and counts[0] < counts[-1] == L
    assert set(made.begin(0, wanted, None).states.tolist()) == {PROVISIONAL}


def test_the_next_canvas_is_drawn_while_nobody_waits() -> None:
    later: list[Any] = []
    made = SimulatedTail(WORDS, STOP, L, later.append)
    wanted = sampling(1, max_new_tokens=2 * L)
    made.begin(0, wanted, None)
    assert len(later) == 1
    later[0]()
    made.begin(1, wanted, None)
    assert len(later) == 1  # it is the answer's last
