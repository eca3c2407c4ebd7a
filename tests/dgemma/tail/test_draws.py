from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.tail.draws import Moment, SeededDraws, TapeDraws

C, N, L, V = 2, 3, 4, 10


def tape(uniform: torch.Tensor | None = None) -> TapeDraws:
    generator = torch.Generator().manual_seed(0)
    return TapeDraws(
        torch.randint(V, (C, L), generator=generator),
        torch.rand(C, N, L, generator=generator).double() if uniform is None else uniform,
        torch.randint(V, (C, N, L), generator=generator),
    )


def invert(probabilities: list[float], u: float) -> int:
    """One position's token."""
    draws = tape(torch.tensor([[[u]]], dtype=torch.float64))
    return int(draws.invert([Moment(0, 0, 0)], torch.tensor([[probabilities]])).item())


def test_a_tape_is_read_by_canvas_and_step() -> None:
    draws = tape()
    assert torch.equal(draws.initial(99, 1), draws.init[1])
    got, race = draws.step([Moment(99, 1, 2), Moment(99, 0, 1)])
    assert torch.equal(got, torch.stack([draws.renoised[1, 2], draws.renoised[0, 1]]))
    assert race is None  # the tokens are found by inversion


@pytest.mark.parametrize(
    ("u", "token"),
    [
        (0.0, 0),
        (0.2499, 0),
        (0.25, 1),  # the cumulative probability must exceed u
        (0.4999, 1),
        (0.5, 3),  # a token without probability is never sampled
        (0.999999, 3),
        (1.0, 3),  # none exceeds it: the last id
    ],
)
def test_the_first_token_whose_cumulative_probability_exceeds_u(u: float, token: int) -> None:
    assert invert([0.25, 0.25, 0.0, 0.5], u) == token


def test_tokens_before_the_first_with_probability_are_never_sampled() -> None:
    assert invert([0.0, 0.0, 1.0, 0.0], 0.0) == 2


def test_the_last_id_if_no_cumulative_probability_exceeds_u() -> None:
    assert invert([0.5, 0.5, 0.0, 0.0], 1.0) == 3


def test_probabilities_are_divided_by_their_sum() -> None:
    """Their fp32 sum is hardly ever exactly 1."""
    assert invert([0.1, 0.1, 0.2], 0.49) == 1
    assert invert([0.1, 0.1, 0.2], 0.51) == 2
    assert invert([0.3, 0.3, 0.3], math.nextafter(1.0, 0.0)) == 2


def test_the_cumulative_sum_is_taken_in_float64() -> None:
    """In fp32 a long sum of small probabilities stands still."""
    size = 200_000
    probabilities = torch.full((1, 1, size), 1e-9)
    probabilities[0, 0, 0] = 1.0
    total = probabilities.double().sum().item()
    wanted = 150_000
    u = (1.0 + 1e-9 * (wanted - 0.5)) / total
    draws = tape(torch.tensor([[[u]]], dtype=torch.float64))
    assert abs(draws.invert([Moment(0, 0, 0)], probabilities).item() - wanted) <= 1


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**30), st.floats(0, 1, exclude_max=True), st.integers(2, 60))
def test_inversion_as_numpy_does_it(seed: int, u: float, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = (5 * torch.randn(size, generator=generator)).softmax(-1)
    cumulative = np.cumsum(p.numpy().astype(np.float64))
    cumulative /= cumulative[-1]
    assert invert(p.tolist(), u) == min(int(np.searchsorted(cumulative, u, "right")), size - 1)


def test_each_row_and_position_has_its_own_number() -> None:
    draws = tape()
    p = torch.full((2, L, V), 1 / V)
    got = draws.invert([Moment(0, 1, 0), Moment(0, 0, 2)], p)
    wanted = torch.stack([draws.uniform[1, 0], draws.uniform[0, 2]]) * V
    assert torch.equal(got, wanted.long())


def test_seeded_draws_are_no_tape() -> None:
    with pytest.raises(TypeError, match="race"):
        SeededDraws(L, V).invert([Moment(0, 0, 0)], torch.ones(1, L, V))
