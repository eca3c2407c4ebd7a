from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgemma.tail.draws import Moment, SeededDraws
from dgemma.tail.noise import FEW_TOKENS, INITIAL, RENOISE, SAMPLE, Key, Noise, Race, Words, mix

PINNED_INITIAL = [85, 274, 54, 0, 178, 146, 176, 19]
PINNED_RENOISE = [175, 67, 164, 150, 258, 3, 106, 64]
CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**63 - 1)


def chi_square(counts: Sequence[int] | Tensor, expected: Sequence[float] | Tensor) -> float:
    """Standard deviations by which chi-square exceeds its mean; a good source stays within 4."""
    got, wanted = torch.as_tensor(counts).double(), torch.as_tensor(expected).double()
    assert abs(got.sum() - wanted.sum()) < 1e-3 * wanted.sum()
    freedom = len(wanted) - 1
    return float((((got - wanted) ** 2 / wanted).sum() - freedom) / (2 * freedom) ** 0.5)


def keys(count: int, purpose: int) -> list[Key]:
    return [Key.of(seed, 0, 0, purpose) for seed in range(count)]


def drawn(noise: Noise, of: list[Key]) -> Tensor:
    return noise.ids(noise.words(of))


def renoised(draws: SeededDraws, *moments: Moment) -> Tensor:
    return draws.step(moments)[0]


def race_of(draws: SeededDraws, *moments: Moment) -> Race:
    race = draws.step(moments)[1]
    assert race is not None
    return race


# Token ids


@pytest.mark.parametrize("vocab_size", [2, 37, 320, 4096])
@pytest.mark.parametrize("purpose", [INITIAL, RENOISE])
def test_token_ids_are_uniform(vocab_size: int, purpose: int) -> None:
    ids = drawn(Noise(64, vocab_size, CPU), keys(2000, purpose)).flatten()
    counts = torch.bincount(ids, minlength=vocab_size)
    assert len(counts) == vocab_size
    assert abs(chi_square(counts, [len(ids) / vocab_size] * vocab_size)) < 4


def test_every_position_is_uniform_over_seeds() -> None:
    """Canvases of consecutive seeds have nothing in common at any position."""
    vocab_size = 16
    ids = drawn(Noise(24, vocab_size, CPU), keys(4000, INITIAL))
    for position in range(24):
        counts = torch.bincount(ids[:, position], minlength=vocab_size)
        assert abs(chi_square(counts, [4000 / vocab_size] * vocab_size)) < 5


def test_neighbouring_positions_and_steps_are_independent() -> None:
    noise = Noise(256, 8, CPU)
    steps = drawn(noise, [Key.of(3, 1, step, RENOISE) for step in range(400)])
    for first, second in ((steps[:, :-1], steps[:, 1:]), (steps[:-1], steps[1:])):
        pairs = torch.bincount((first * 8 + second).flatten(), minlength=64)
        assert abs(chi_square(pairs, [first.numel() / 64] * 64)) < 4


def test_mixing_is_a_bijection() -> None:
    words = mix(torch.arange(-(2**15), 2**15, dtype=torch.int32))
    assert len(words.unique()) == 2**16


# What noise is a function of


@settings(deadline=None, derandomize=True)
@given(SEEDS, st.integers(0, 1000), st.integers(0, 1000))
def test_each_draw_of_each_moment_has_its_own_key(seed: int, block: int, step: int) -> None:
    """Neighbours in any of the four numbers differ, also where two numbers are swapped."""
    moments = [
        *((seed, block, step), (seed ^ 1, block, step), (seed, block + 1, step)),
        *((seed, block, step + 1), (seed, block + 1, step + 1)),
    ]
    if block != step:
        moments.append((seed, step, block))
    distinct = set(moments)
    made = {Key.of(*moment, purpose) for moment in distinct for purpose in range(3)}
    assert len(made) == 3 * len(distinct)


@settings(deadline=None, derandomize=True)
@given(SEEDS, SEEDS, st.integers(0, 5), st.integers(0, 47))
def test_noise_does_not_depend_on_neighbouring_rows(
    seed: int, other: int, block: int, step: int
) -> None:
    draws = SeededDraws(8, 50)
    mine, theirs = Moment(seed, block, step), Moment(other, step, block)
    for crowd in ([theirs, mine], [mine, theirs, mine]):
        row = crowd.index(mine)
        assert torch.equal(renoised(draws, *crowd)[row], renoised(draws, mine)[0])
        among, alone = race_of(draws, *crowd), race_of(draws, mine)
        assert torch.equal(among(3, 40)[row], alone(3, 40)[0])


def test_noise_of_a_position_does_not_depend_on_the_canvas_length() -> None:
    long, short = SeededDraws(96, 320), SeededDraws(24, 320)
    assert torch.equal(long.initial(5, 0)[:24], short.initial(5, 0))


@pytest.mark.parametrize("tile", [1, 7, 50])
def test_noise_of_a_token_does_not_depend_on_its_tile(tile: int) -> None:
    race = race_of(SeededDraws(8, 50), Moment(1, 2, 3))
    parts = [race(first, min(first + tile, 50)) for first in range(0, 50, tile)]
    assert torch.equal(torch.cat(parts, -1), race(0, 50))


def test_initial_renoised_and_sampled_noise_differ() -> None:
    draws = SeededDraws(64, 320)
    first = draws.initial(9, 0)
    assert not torch.equal(first, renoised(draws, Moment(9, 0, 0))[0])
    assert not torch.equal(first, draws.initial(9, 1))
    assert not torch.equal(first, draws.initial(10, 0))
    steps = renoised(draws, *(Moment(9, 0, step) for step in range(20)))
    assert len({tuple(row.tolist()) for row in steps}) == 20


def test_noise_is_the_same_in_every_release() -> None:
    """A seed that a user has kept reproduces the text, so these numbers may never change."""
    draws = SeededDraws(8, 320)
    assert draws.initial(1234, 0).tolist() == PINNED_INITIAL
    assert renoised(draws, Moment(1234, 2, 7))[0].tolist() == PINNED_RENOISE


# The race


def sampled(probabilities: Tensor, count: int) -> Tensor:
    """Winners of `count` races at one position each."""
    size = len(probabilities)
    noise = Noise(16, size, CPU)
    words = noise.words([Key.of(s, 0, 5, SAMPLE) for s in range(count // 16)])
    race = probabilities / noise.exponential(words, 0, size)
    return race.argmax(-1).flatten()


@pytest.mark.parametrize("size", [2, 10, 64])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_race_samples_the_softmax_distribution(size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(size)
    z = torch.randn(size, generator=generator) / temperature
    probabilities = z.softmax(-1)
    winners = sampled(probabilities, 64_000)
    likely = probabilities * len(winners) >= 5
    counts = torch.bincount(winners, minlength=size)
    expected = probabilities * len(winners)
    # Rare tokens are counted together, as chi-square wants.
    groups = [*counts[likely].tolist(), int(counts[~likely].sum())]
    wanted = [*expected[likely].tolist(), float(expected[~likely].sum()) + 1e-9]
    if wanted[-1] < 5:
        groups, wanted = groups[:-1], wanted[:-1]
        scale = sum(groups) / sum(wanted)
        wanted = [value * scale for value in wanted]
    assert abs(chi_square(groups, wanted)) < 4


def test_races_at_different_positions_and_steps_are_independent() -> None:
    noise = Noise(32, 4, CPU)
    words = noise.words([Key.of(8, 0, step, SAMPLE) for step in range(2000)])
    winners = noise.exponential(words, 0, 4).argmin(-1)
    for first, second in itertools.chain(
        [(winners[:, :-1], winners[:, 1:])], [(winners[:-1], winners[1:])]
    ):
        pairs = torch.bincount((first * 4 + second).flatten(), minlength=16)
        assert abs(chi_square(pairs, [first.numel() / 16] * 16)) < 4


def test_exponential_noise_is_exponential_and_never_zero() -> None:
    noise = Noise(64, 256, CPU)
    values = noise.exponential(noise.words(keys(64, SAMPLE)), 0, 256).flatten()
    assert values.min() > 0 and bool(values.isfinite().all())
    levels = torch.exp(-values.double())  # uniform, if the noise is exponential
    counts = torch.histc(levels, 100, 0, 1)
    assert abs(chi_square(counts, [len(values) / 100] * 100)) < 4
    assert float(values.mean()) == pytest.approx(1.0, abs=0.01)
    assert np.quantile(values.numpy(), 0.5) == pytest.approx(np.log(2), abs=0.01)


@pytest.mark.parametrize("size", [FEW_TOKENS, FEW_TOKENS + 1])
def test_noise_is_the_same_whether_the_tokens_hashes_are_kept_or_not(size: int) -> None:
    noise = Noise(3, size, CPU)
    words = noise.words(keys(4, SAMPLE))
    prepared = noise.with_tokens(words)
    assert (prepared.tokens is not None) == (size <= FEW_TOKENS)
    chosen = Words.joined([prepared.rows(2, 3), prepared.rows(0, 1)])
    for first, last in ((0, size), (7, 100), (size - 1, size)):
        wanted = noise.exponential(words, first, last)[[2, 0]]
        assert torch.equal(noise.exponential(chosen, first, last), wanted)
