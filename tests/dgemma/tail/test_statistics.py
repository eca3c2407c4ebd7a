from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgemma.tail.draws import Moment, SeededDraws
from dgemma.tail.statistics import Head, Statistics, statistics

R, L, D, V = 2, 6, 16, 101
TILES = [1, 2, 7, 50, V - 1, V, 4 * V]


def head(scale: float = 1.0, softcap: float = 30.0) -> Head:
    generator = torch.Generator().manual_seed(3)
    return Head(scale * torch.randn(V, D, generator=generator), softcap)


def hidden(seed: int = 4) -> Tensor:
    return torch.randn(R, L, D, generator=torch.Generator().manual_seed(seed))


TEMPERATURE = torch.tensor([0.4, 0.8])[:, None, None]


def whole(of: Head, states: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, probabilities and expected embeddings in float64, all of the vocabulary at once."""
    logits = states.double() @ of.embedding.double().T
    z = of.softcap * torch.tanh(logits / of.softcap) / temperature.double()
    p = z.softmax(-1)
    return z, p, p @ of.embedding.double() * math.sqrt(D)


def entropy_of(z: Tensor) -> Tensor:
    return -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)


def race() -> tuple[SeededDraws, list[Moment]]:
    return SeededDraws(L, V), [Moment(row, 0, 3) for row in range(R)]


# Exactness


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_a_sweep_of_tiles_equals_the_whole_softmax(tile: int, scale: float) -> None:
    """From distributions that are nearly flat to ones that are nearly certain."""
    of, states = head(scale), hidden()
    z, _, soft = whole(of, states, TEMPERATURE)
    view = statistics(of, states, TEMPERATURE, None, tile)
    assert torch.equal(view.argmax, z.argmax(-1))
    torch.testing.assert_close(view.entropy.double(), entropy_of(z), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(view.soft.double(), soft, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("tile", TILES)
def test_the_winner_of_the_race_is_the_same_whatever_the_tile(tile: int) -> None:
    draws, moments = race()
    _, noise = draws.step(moments)
    assert noise is not None
    of, states = head(), hidden()
    view = statistics(of, states, TEMPERATURE, noise, tile)
    _, p, _ = whole(of, states, TEMPERATURE)
    assert torch.equal(view.sampled, (p / noise(0, V)).argmax(-1))
    assert not torch.equal(view.sampled, view.argmax)


def test_without_a_race_the_sampled_token_is_the_argmax() -> None:
    view = statistics(head(), hidden(), TEMPERATURE, None, 10)
    assert torch.equal(view.sampled, view.argmax)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**20), st.integers(1, V + 5), st.floats(0.05, 4))
def test_any_states_tiles_and_temperatures(seed: int, tile: int, temperature: float) -> None:
    of, states = head(), hidden(seed)
    warmth = torch.full((R, 1, 1), temperature)
    z, _, soft = whole(of, states, warmth)
    view = statistics(of, states, warmth, None, tile)
    torch.testing.assert_close(view.entropy.double(), entropy_of(z), rtol=2e-4, atol=1e-4)
    torch.testing.assert_close(view.soft.double(), soft, rtol=2e-4, atol=1e-3)
    assert view.entropy.min() >= 0


@pytest.mark.parametrize("tile", [1, 7, V])
def test_small_entropies_are_exact(tile: int) -> None:
    """The stopping rule compares entropies of 0.005 and less; cancellation must not eat them."""
    of = Head(torch.eye(D).repeat(3, 1)[:40], 30.0)
    states = torch.zeros(1, 3, D)
    states[0, :, 5] = torch.tensor([8.0, 12.0, 20.0])
    embedding = of.embedding.clone()
    embedding[5 + D :] = 0  # one certain token, the rest are all alike
    of = Head(embedding, 30.0)
    z, _, _ = whole(of, states, torch.ones(1, 1, 1))
    wanted = entropy_of(z)
    assert wanted.max() < 0.3 and wanted.min() < 1e-4
    view = statistics(of, states, torch.ones(1, 1, 1), None, tile)
    torch.testing.assert_close(view.entropy.double(), wanted, rtol=1e-3, atol=1e-6)
    assert view.entropy.min() >= 0  # or a threshold of 0 would stop a canvas


# Edges


@pytest.mark.parametrize("tile", TILES)
def test_of_equal_scores_the_first_token_is_the_argmax(tile: int) -> None:
    embedding = torch.zeros(V, D)
    embedding[[30, 60, 99]] = 1.0
    view = statistics(Head(embedding, 30.0), torch.ones(R, L, D), TEMPERATURE, None, tile)
    assert view.argmax.unique().tolist() == [30]
    flat = statistics(Head(torch.zeros(V, D), 30.0), hidden(), TEMPERATURE, None, tile)
    assert flat.argmax.unique().tolist() == [0]
    torch.testing.assert_close(flat.entropy, torch.full((R, L), math.log(V)))


def test_scores_far_apart_do_not_overflow() -> None:
    states = torch.full((1, 1, D), 1e4)
    for order in (1, -1):
        embedding = order * torch.linspace(-1, 1, V)[:, None].expand(V, D)
        view = statistics(Head(embedding, 1e5), states, torch.full((1, 1, 1), 0.01), None, 10)
        assert view.argmax.item() == (V - 1 if order == 1 else 0)
        assert view.entropy.item() == 0.0
        assert bool(view.soft.isfinite().all())


def test_each_row_has_its_own_temperature() -> None:
    states = hidden()
    both = statistics(head(), states, TEMPERATURE, None, 10)
    for row in range(R):
        one = statistics(head(), states[row : row + 1], TEMPERATURE[row : row + 1], None, 10)
        torch.testing.assert_close(one.entropy[0], both.entropy[row])
        torch.testing.assert_close(one.soft[0], both.soft[row])


@pytest.mark.parametrize("softcap", [1.0, 5.0, 30.0])
def test_scores_are_soft_capped_logits_over_the_temperature(softcap: float) -> None:
    of = head(4.0, softcap)
    z, _, _ = whole(of, hidden(), TEMPERATURE)
    got = of.scores(hidden(), TEMPERATURE, 10, 20)
    shifted = z[..., 10:20] + softcap / TEMPERATURE.double()  # which no softmax sees
    torch.testing.assert_close(got.double(), shifted, rtol=1e-5, atol=2e-5)


def test_half_precision_states_give_fp32_entropies_and_soft_embeddings_of_their_own_type() -> None:
    states = hidden().bfloat16()
    view: Statistics = statistics(head(), states, TEMPERATURE, None, 10)
    assert (view.entropy.dtype, view.soft.dtype) == (torch.float32, torch.bfloat16)
    z, _, _ = whole(head(), states.float(), TEMPERATURE)
    torch.testing.assert_close(view.entropy.double(), entropy_of(z), rtol=0.1, atol=0.1)
