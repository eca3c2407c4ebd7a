from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.tail.draws import Moment, SeededDraws, TapeDraws
from dgemma.tail.statistics import Head, statistics
from dgemma.tail.tail import ACCEPTED, PINNED, PROVISIONAL, Canvas, Tail
from dgemma.template import FREE
from tests.dgemma.scheduler.requests import SAMPLING

L, V = 8, 40
HEAD = Head(torch.eye(V), 30.0)  # hidden states are logits, but for the soft-cap
TAIL = Tail(HEAD, SeededDraws(L, V), partial(statistics, tile=16))


def settings(**overrides: Any) -> Sampling:
    return replace(SAMPLING, **{"max_denoising_steps": 8, "seed": 3, **overrides})


def logits(tokens: list[int], sharpness: list[float] | float = 25.0) -> Tensor:
    """Hidden states `[1, L, D]` that want these tokens, each as surely as it says."""
    hidden = torch.zeros(1, L, V)
    values = torch.tensor(sharpness).expand(L)
    hidden[0, torch.arange(L), torch.tensor(tokens)] = values
    return hidden


def waves(seed: int, rows: int = 1) -> Tensor:
    return 4 * torch.randn(rows, L, V, generator=torch.Generator().manual_seed(seed))


def pins(**at: int) -> Tensor:
    """Pinned tokens by position, as in `pins(p2=7)`."""
    pinned = torch.full((L,), FREE)
    for key, token in at.items():
        pinned[int(key[1:])] = token
    return pinned


WANT = [5, 6, 7, 8, 9, 10, 11, 12]

# One step


def test_a_canvas_begins_with_the_seeds_own_tokens() -> None:
    canvas = TAIL.begin(2, settings(), None)
    assert torch.equal(canvas.ids, TAIL.draws.initial(3, 2))
    assert (canvas.block, canvas.step, canvas.soft, canvas.converged) == (2, 0, None, False)


def test_accepted_positions_get_the_sampled_token_and_others_a_fresh_one() -> None:
    sampling = settings(entropy_bound=0.5)
    canvas = TAIL.begin(0, sampling, None)
    TAIL.step(logits(WANT, [25.0] * 3 + [0.0] * 5), [(canvas, sampling)])
    assert canvas.accepted is not None
    assert canvas.accepted.tolist() == [True] * 4 + [False] * 4
    assert canvas.ids[:3].tolist() == WANT[:3]
    fresh = TAIL.draws.step([Moment(3, 0, 0)])[0][0]
    assert torch.equal(canvas.ids[4:], fresh[4:])
    assert canvas.states.tolist() == [ACCEPTED] * 4 + [PROVISIONAL] * 4


def test_an_accepted_position_can_be_lost_again() -> None:
    canvas, sampling = TAIL.begin(0, settings(), None), settings()
    TAIL.step(logits(WANT, [25.0] * 7 + [0.0]), [(canvas, sampling)])
    assert canvas.states.tolist()[1] == ACCEPTED
    TAIL.step(logits(WANT, [25.0] + [0.0] * 7), [(canvas, sampling)])
    assert canvas.states.tolist()[2:] == [PROVISIONAL] * 6


def test_the_soft_embedding_is_the_expected_token_at_this_steps_temperature() -> None:
    canvas, sampling = TAIL.begin(0, settings(), None), settings(t_min=0.3, t_max=0.9)
    hidden = waves(1)
    for step in range(3):
        TAIL.step(hidden, [(canvas, sampling)])
        warmth = 0.3 + 0.6 * (8 - step) / 8
        p = (30 * torch.tanh(hidden[0] / 30) / warmth).softmax(-1)
        assert canvas.soft is not None
        torch.testing.assert_close(canvas.soft, p * V**0.5, rtol=1e-4, atol=1e-5)


def test_sampling_follows_the_temperature() -> None:
    """A tape's inversion is by the tempered distribution."""
    uniform = torch.full((1, 8, L), 0.7).double()
    draws = TapeDraws(torch.zeros(1, L).long(), uniform, torch.zeros(1, 8, L).long())
    tail = Tail(HEAD, draws)
    hidden = torch.zeros(1, L, V)
    hidden[..., 0] = 2.0
    hot, cold = settings(t_max=2.0, t_min=2.0), settings(t_max=0.2, t_min=0.2)
    for sampling, token in ((hot, None), (cold, 0)):
        canvas = tail.begin(0, sampling, None)
        tail.step(hidden, [(canvas, replace(sampling, entropy_bound=1e6))])
        assert (token is None) == bool((canvas.ids != 0).all())


# When a canvas is done


def run(hiddens: list[Tensor], sampling: Sampling, pinned: Tensor | None = None) -> list[bool]:
    """Whether the canvas has converged, after each step."""
    canvas = TAIL.begin(0, sampling, pinned)
    done = []
    for hidden in hiddens:
        TAIL.step(hidden, [(canvas, sampling)])
        done.append(canvas.converged)
    return done


SURE, UNSURE, OTHER = logits(WANT), logits(WANT, 3.0), logits([30, *WANT[1:]])


@pytest.mark.parametrize(
    ("stability", "hiddens", "done"),
    [
        (1, [SURE, SURE, SURE], [False, True, True]),
        (2, [SURE, SURE, SURE, SURE], [False, False, True, True]),
        (0, [SURE], [True]),
        (1, [UNSURE, UNSURE, SURE], [False, False, True]),  # stable, then confident
        (1, [SURE, OTHER, OTHER], [False, False, True]),  # confident, but not stable
        (2, [SURE, OTHER, OTHER, OTHER], [False, False, False, True]),
        (1, [SURE, OTHER, SURE], [False, False, False]),
    ],
)
def test_a_canvas_is_done_when_it_is_stable_and_confident(
    stability: int, hiddens: list[Tensor], done: list[bool]
) -> None:
    assert run(hiddens, settings(stability_threshold=stability)) == done


def test_a_confidence_threshold_of_zero_never_stops() -> None:
    assert not any(run([SURE] * 4, settings(confidence_threshold=0.0)))


def test_the_answer_is_the_argmax_and_not_the_noisy_canvas() -> None:
    canvas, sampling = TAIL.begin(0, settings(), None), settings()
    TAIL.step(logits(WANT, 6.0), [(canvas, sampling)])
    assert canvas.argmax is not None
    assert canvas.argmax.tolist() == WANT
    assert canvas.ids.tolist() != WANT


# Pinned tokens


def test_pinned_tokens_are_held_through_all_steps() -> None:
    pinned = pins(p0=30, p4=31)
    canvas, sampling = TAIL.begin(0, settings(), pinned), settings()
    for step in range(5):
        assert canvas.ids[[0, 4]].tolist() == [30, 31]
        TAIL.step(waves(step), [(canvas, sampling)])
        assert canvas.argmax is not None
        assert canvas.argmax[[0, 4]].tolist() == [30, 31]
        assert canvas.states[[0, 4]].tolist() == [PINNED, PINNED]
        assert PINNED not in canvas.states[[1, 2, 3, 5, 6, 7]].tolist()
    assert canvas.ids[[0, 4]].tolist() == [30, 31]


def test_a_pinned_position_is_certain_of_its_token() -> None:
    canvas, sampling = TAIL.begin(0, settings(), pins(p2=33)), settings()
    TAIL.step(waves(0), [(canvas, sampling)])
    assert canvas.soft is not None
    assert torch.equal(canvas.soft[2], HEAD.embedding[33] * V**0.5)


def test_the_mean_and_the_stopping_rule_see_free_positions_only() -> None:
    vague = logits(WANT, [25.0] * 6 + [0.0] * 2)
    assert run([vague, vague], settings()) == [False, False]
    assert run([vague, vague], settings(), pins(p6=1, p7=2)) == [False, True]
    canvas = TAIL.begin(0, settings(), pins(p0=1, p1=1, p2=1, p3=1, p4=1, p5=1))
    TAIL.step(vague, [(canvas, settings())])
    assert canvas.mean_entropy == pytest.approx(float(torch.log(torch.tensor(V))), rel=1e-4)


def test_pinned_positions_use_nothing_of_the_entropy_bound() -> None:
    hidden = logits(WANT, [25.0] + [4.0] * 7)
    sampling = settings(entropy_bound=2.0)
    free, held = TAIL.begin(0, sampling, None), TAIL.begin(0, sampling, pins(p0=1, p1=2, p2=3))
    TAIL.step(hidden, [(free, sampling)])
    TAIL.step(hidden, [(held, sampling)])
    assert free.accepted is not None and held.accepted is not None
    assert free.accepted.sum() < 5
    assert not held.accepted[:3].any()
    alone = int(free.accepted[1:].sum())  # the sure position costs nothing
    assert int(held.accepted[3:].sum()) == alone


# Rows of a pass


def test_each_row_is_stepped_under_its_own_settings_as_if_alone() -> None:
    of = [
        settings(seed=1, t_min=0.2, t_max=0.4, max_denoising_steps=3),
        settings(seed=2, entropy_bound=9.0, stability_threshold=4),
        settings(seed=3, confidence_threshold=5.0, stability_threshold=0),
        settings(seed=4),
    ]
    held = [None, pins(p1=20), None, pins(p0=1, p5=2)]
    together = [TAIL.begin(i, s, p) for i, (s, p) in enumerate(zip(of, held, strict=True))]
    alone = [TAIL.begin(i, s, p) for i, (s, p) in enumerate(zip(of, held, strict=True))]
    for step in range(3):
        hidden = waves(step, rows=4)
        TAIL.step(hidden, list(zip(together, of, strict=True)))
        for i, canvas in enumerate(alone):
            TAIL.step(hidden[i : i + 1], [(canvas, of[i])])
    for a, b in zip(together, alone, strict=True):
        _assert_equal(a, b)


def test_rows_may_be_at_different_steps() -> None:
    sampling = settings()
    ahead, late = TAIL.begin(0, sampling, None), TAIL.begin(0, settings(seed=9), None)
    TAIL.step(waves(0), [(ahead, sampling)])
    TAIL.step(waves(1, rows=2), [(ahead, sampling), (late, settings(seed=9))])
    alone = TAIL.begin(0, settings(seed=9), None)
    TAIL.step(waves(1, rows=2)[1:], [(alone, settings(seed=9))])
    assert (ahead.step, late.step) == (2, 1)
    _assert_equal(late, alone)


def _assert_equal(a: Canvas, b: Canvas) -> None:
    for name in ("ids", "argmax", "accepted", "entropy", "soft", "states"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.step, a.converged, a.mean_entropy) == (b.step, b.converged, b.mean_entropy)
