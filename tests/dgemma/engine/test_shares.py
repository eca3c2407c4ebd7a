"""Shares of a pass: they cover every token, no bit moves, and none waits for one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.engine.shares import LEAST, share_out
from dgemma.errors import EngineFailure

L, D = 96, 64
CAPACITY = Capacity(8, 512, 16)


@given(st.integers(1, 600), st.integers(1, 80))
def test_shares_are_of_one_size_and_cover_all_tokens_in_order(length: int, most: int) -> None:
    shares = share_out(length, most)
    assert 1 <= len(shares) <= most
    assert {token for share in shares for token in share} == set(range(length))
    assert len({len(share) for share in shares}) == 1
    assert len(shares) == 1 or len(shares[0]) >= LEAST
    # The graph finds a token by the size of a share alone.
    size = len(shares[0])
    assert [share.start for share in shares] == [
        min(at * size, length - size) for at in range(len(shares))
    ]


def test_two_cores_have_half_each() -> None:
    assert share_out(96, 2) == [range(48), range(48, 96)]
    assert share_out(89, 2) == [range(45), range(44, 89)]
    assert share_out(2 * LEAST - 1, 2) == [range(2 * LEAST - 1)]


def tokens(seed: int) -> Tensor:
    return torch.randint(64, 320, (L,), generator=torch.Generator().manual_seed(seed))


def soft(seed: int) -> Tensor:
    return torch.randn(L, D, generator=torch.Generator().manual_seed(seed))


def mixed(requests: int) -> list[Row]:
    """Pairs of a commit and a canvas, and canvases behind what `forward` committed before."""
    rows: list[Row] = []
    for slot in range(requests):
        canvas = Row(tokens(50 + slot), slot, L - slot, L, True, soft(slot))
        if slot % 3 != 2:
            commit = Row(tokens(slot), slot, 0, L - slot, False)
            rows += [commit, canvas._replace(partner=len(rows))]
        else:
            rows.append(canvas)
    return rows


Seen = list[Tensor]


def seen_by(engine: OnnxEngine, requests: int) -> Seen:
    """Hidden states, and the K/V that are kept."""
    for slot in range(2, requests, 3):
        engine.forward([Row(tokens(slot), slot, 0, L - slot, False)])
    hidden = engine.forward(mixed(requests)).clone()
    kept = [engine.snapshot(slot, 0, L - slot).parts for slot in range(requests)]
    return [hidden, *(torch.from_numpy(part) for parts in kept for part in parts)]


@pytest.fixture(scope="module")
def alone(demo_engine: Path) -> dict[int, Seen]:
    """What one share gives, for so many requests."""
    engine = OnnxEngine(demo_engine, CAPACITY, threads=1)
    return {requests: seen_by(engine, requests) for requests in (1, 2, 5)}


@pytest.mark.parametrize(("threads", "shares"), [(2, 2), (3, 3), (5, 5), (40, 6)])
def test_any_number_of_shares_gives_the_same_bits(
    demo_engine: Path, alone: dict[int, Seen], threads: int, shares: int
) -> None:
    """Five overlap: 96 tokens are no multiple of five."""
    engine = OnnxEngine(demo_engine, CAPACITY, threads=threads)
    assert len(share_out(L, threads)) == shares
    for requests, wanted in alone.items():
        for a, b in zip(seen_by(engine, requests), wanted, strict=True):
            assert torch.equal(a, b)


class Failing:
    """A session of a share that fails as often as it is told to."""

    def __init__(self, session: Any, times: int) -> None:
        self.session, self.times = session, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        if self.times:
            self.times -= 1
            raise RuntimeError("out of luck")
        self.session.run_with_iobinding(binding)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_share_that_fails_keeps_no_other_waiting(
    demo_engine: Path, alone: dict[int, Seen], failing: int
) -> None:
    engine = OnnxEngine(demo_engine, CAPACITY, threads=3)
    core = engine._cores.each[failing]
    vars(core)["network"] = Failing(core.network, times=1)
    with pytest.raises(EngineFailure, match="out of luck"):
        engine.forward(mixed(1))
    assert all(not array.any() for array in engine.pool.arrays)
    for a, b in zip(seen_by(engine, 1), alone[1], strict=True):
        assert torch.equal(a, b)


# Where rows stand is worked out once.


class Counting(Failing):
    """A session that counts its runs."""

    def __init__(self, session: Any) -> None:
        super().__init__(session, times=0)
        self.runs = 0

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1
        super().run_with_iobinding(binding)


def opened(directory: Path) -> OnnxEngine:
    """Both slots hold a chunk."""
    engine = OnnxEngine(directory, Capacity(2, 1024, 4), threads=1)
    engine.forward([Row(tokens(slot), slot, 0, L, False) for slot in range(2)])
    return engine


def test_the_steps_of_a_canvas_have_their_places_worked_out_once(demo_engine: Path) -> None:
    engine = opened(demo_engine)
    (core,) = engine._cores.each
    index = vars(core)["index"] = Counting(core.index)
    for seed in range(3):
        engine.forward([Row(tokens(seed), 0, L, L, True, soft(seed))])
    assert index.runs == 1
    engine.forward([Row(tokens(0), 1, L, L, True, soft(0))])
    assert index.runs == 2


def test_what_was_given_back_is_worked_out_again(
    demo_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgemma.engine.onnx_engine.PLACED_BYTES", 2**20)
    engine = OnnxEngine(demo_engine, CAPACITY, threads=2)
    shapes = [
        [Row(tokens(slot), slot, 0, L, True, soft(slot)) for slot in range(count)]
        for count in range(1, 9)
    ] + [mixed(1), mixed(2)]
    first = []
    for rows in shapes:
        first.append(engine.forward(rows).clone())
        *others, _ = engine._placed
        assert sum(other.placed_bytes for other in others) <= 2**20
    assert 1 < len(engine._placed) < len(shapes)
    for rows, wanted in zip(shapes, first, strict=True):
        assert torch.equal(engine.forward(rows), wanted)


def pair(slot: int, valid: int = L) -> list[Row]:
    canvas = Row(tokens(1), slot, L + valid, L, True, soft(1), partner=0)
    return [Row(tokens(slot), slot, L, valid, False), canvas]


OTHER = Row(tokens(0), 1, L, L, True, soft(0))
FIRST = [*pair(0), OTHER]


@pytest.mark.parametrize(
    "moved",
    [
        [*pair(0), OTHER._replace(start=L - 10)],
        [*pair(1), OTHER._replace(slot=0)],
        [*pair(0), OTHER._replace(denoise=False, soft=None)],
        [*pair(0, valid=90), OTHER],
    ],
    ids=["start", "slot", "mode", "valid"],
)
def test_rows_that_stand_elsewhere_are_computed_as_if_they_came_first(
    demo_engine: Path, moved: list[Row]
) -> None:
    def run(*passes: Sequence[Row]) -> Tensor:
        engine = opened(demo_engine)
        held = [array.copy() for array in engine.pool.arrays]
        for rows in passes:
            for array, old in zip(engine.pool.arrays, held, strict=True):
                array[...] = old
            hidden = engine.forward(rows).clone()
        return hidden

    first = run(moved)
    assert torch.equal(run(FIRST, moved), first)
    assert torch.equal(run(moved, FIRST, moved), first)
    assert not torch.equal(run(FIRST), first)


def test_where_cores_may_see_each_others_writes_in_any_order_nothing_is_shared_out(
    demo_engine: Path, alone: dict[int, Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    engine = OnnxEngine(demo_engine, CAPACITY, threads=2)
    assert len(engine._cores.each) == 1
    for ours, theirs in zip(seen_by(engine, 1), alone[1], strict=True):
        assert torch.equal(ours, theirs)
