from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.tail.acceptance import accept, converged, mean_entropy, temperature

ENTROPIES = st.lists(st.floats(0, 6, width=32), min_size=1, max_size=24)


def accepted(entropy: list[float], bound: float, free: list[bool] | None = None) -> list[bool]:
    held = None if free is None else torch.tensor([free])
    return accept(torch.tensor([entropy]), torch.tensor([[bound]]), held)[0].tolist()


# The schedule


def test_the_temperature_falls_linearly_from_t_max() -> None:
    values = [temperature(step, 4, 0.4, 0.8) for step in range(4)]
    assert values == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_one_step_runs_at_t_max() -> None:
    assert temperature(0, 1, 0.4, 0.8) == pytest.approx(0.8)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 100), st.floats(0.01, 1), st.floats(0, 1))
def test_no_step_is_colder_than_the_one_after_it(steps: int, low: float, width: float) -> None:
    values = [temperature(step, steps, low, low + width) for step in range(steps)]
    assert all(a >= b >= low for a, b in itertools.pairwise(values))


# The entropy bound


def test_positions_are_accepted_while_the_surer_ones_sum_to_at_most_the_bound() -> None:
    # In order: 0.05 (sum before it 0), 0.1 (0.05), 0.2 (0.15), 1.0 (0.35).
    entropy = [0.2, 0.05, 1.0, 0.1]
    assert accepted(entropy, 0.01) == [False, True, False, False]
    assert accepted(entropy, 0.06) == [False, True, False, True]
    assert accepted(entropy, 0.16) == [True, True, False, True]
    assert accepted(entropy, 0.36) == [True, True, True, True]


def test_the_bound_itself_is_within_the_bound() -> None:
    assert accepted([0.25, 0.5, 0.5], 0.25) == [True, True, False]


def test_of_equal_entropies_exactly_as_many_as_the_bound_allows_are_accepted() -> None:
    assert sum(accepted([0.5] * 6, 1.0)) == 3


@settings(deadline=None, derandomize=True)
@given(ENTROPIES, st.floats(1e-6, 3))
def test_at_least_the_surest_position_is_accepted(entropy: list[float], bound: float) -> None:
    chosen = accepted(entropy, bound)
    kept = [e for e, yes in zip(entropy, chosen, strict=True) if yes]
    left = [e for e, yes in zip(entropy, chosen, strict=True) if not yes]
    assert min(entropy) in kept
    assert max(kept) <= min(left, default=torch.inf)
    assert sum(kept) - max(kept) <= bound + 1e-4
    if left:
        assert sum(kept) > bound - 1e-4


@settings(deadline=None, derandomize=True)
@given(ENTROPIES, st.floats(1e-6, 3), st.data())
def test_pinned_positions_are_neither_accepted_nor_counted(
    entropy: list[float], bound: float, data: st.DataObject
) -> None:
    free = data.draw(st.lists(st.booleans(), min_size=len(entropy), max_size=len(entropy)))
    chosen = accepted(entropy, bound, free)
    assert not any(yes for yes, is_free in zip(chosen, free, strict=True) if not is_free)
    alone = [e for e, is_free in zip(entropy, free, strict=True) if is_free]
    if alone:
        among = [yes for yes, is_free in zip(chosen, free, strict=True) if is_free]
        assert sum(among) == sum(accepted(alone, bound))


def test_where_everything_is_pinned_nothing_is_accepted() -> None:
    assert accepted([0.1, 0.2], 5.0, [False, False]) == [False, False]


def test_each_row_has_its_own_bound() -> None:
    entropy = torch.tensor([[0.1, 0.2, 0.3]] * 3)
    bound = torch.tensor([[0.01], [0.15], [10.0]])
    free = torch.ones(3, 3, dtype=torch.bool)
    assert accept(entropy, bound, free).sum(-1).tolist() == [1, 2, 3]


# The stopping rule


def test_the_mean_is_that_of_the_free_positions() -> None:
    entropy = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0], [1.0, 2.0, 6.0]])
    free = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    assert mean_entropy(entropy, free).tolist() == [3.0, 1.5, 0.0]
    assert mean_entropy(entropy).tolist() == [3.0] * 3


@pytest.mark.parametrize(
    ("repeats", "depth", "mean", "done"),
    [
        (1, 1, 0.004, True),
        (2, 1, 0.004, True),
        (0, 1, 0.004, False),  # not stable
        (1, 2, 0.004, False),
        (0, 0, 0.004, True),
        (1, 1, 0.006, False),  # not confident
        (1, 1, 0.005, False),  # less than the threshold, not as much
    ],
)
def test_a_canvas_is_done_when_it_is_stable_and_confident(
    repeats: int, depth: int, mean: float, done: bool
) -> None:
    assert converged(repeats, depth, float(torch.tensor(mean)), 0.005) is done


@pytest.mark.parametrize("mean", [0.0, 1e-38])
def test_a_threshold_of_zero_is_never_undercut(mean: float) -> None:
    assert not converged(9, 0, mean, 0.0)
