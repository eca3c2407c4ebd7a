"""Rows in lanes: partners stay together, no bit moves, and the faster way is kept."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import NO_PARTNER, Capacity, Row
from dgemma.engine.lanes import RETRY, WARM, Pace, lane_rows, lanes_of
from dgemma.engine.onnx_engine import OnnxEngine

L, D = 96, 64
IDS = torch.zeros(L, dtype=torch.int64)


def row(slot: int, partner: int = NO_PARTNER, start: int = 0, denoise: bool = True) -> Row:
    return Row(IDS, slot, start, L, denoise, None, partner)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_lane_and_partners_share_theirs(seed: int) -> None:
    rng = random.Random(seed)
    rows: list[Row] = []
    for slot in range(rng.randint(1, 7)):
        for _ in range(rng.randint(0, 2)):
            partner = len(rows) - 1 if rows and rows[-1].slot == slot else NO_PARTNER
            rows.append(row(slot, partner, denoise=False))
        rows.append(row(slot, len(rows) - 1 if rows and rows[-1].slot == slot else NO_PARTNER))
    most = rng.randint(1, 4)
    lanes = lanes_of(rows, most)
    assert sorted(index for lane in lanes for index in lane) == list(range(len(rows)))
    assert len(lanes) == min(most, len({r.slot for r in rows}))
    lengths = sorted(map(len, lanes))
    assert lengths[-1] - lengths[0] <= 3  # of the longest unit
    for lane in lanes:
        assert lane == sorted(lane)
        for index, placed in zip(lane, lane_rows(rows, lane), strict=True):
            if rows[index].partner != NO_PARTNER:
                assert lane[placed.partner] == rows[index].partner


def test_equal_rows_are_spread_evenly() -> None:
    assert lanes_of([row(slot) for slot in range(8)], 2) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert lanes_of([row(0)], 2) == [[0]]


def test_the_faster_way_is_taken_and_the_other_tried_again() -> None:
    pace, seconds = Pace(), {False: 2.0, True: 1.0}
    taken = []
    for _ in range(4 * RETRY):
        taken.append(pace.choose())
        pace.took(taken[-1], seconds[taken[-1]])
    assert taken.count(False) == WARM + 4  # the first ones, and one in so many
    seconds[True] = 3.0
    later = []
    for _ in range(RETRY):
        later.append(pace.choose())
        pace.took(later[-1], seconds[later[-1]])
    assert not any(later[8:-1])


@pytest.fixture(scope="module")
def engine(demo_engine: Path) -> OnnxEngine:
    return OnnxEngine(demo_engine, Capacity(8, 512, 16), threads=2)


def tokens(seed: int) -> Tensor:
    return torch.randint(64, 320, (L,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("requests", [1, 2, 3, 8])
@pytest.mark.parametrize("fused", [False, True])
def test_both_ways_give_the_same_bits(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch, requests: int, fused: bool
) -> None:
    """Hidden states, and the K/V that are kept."""
    rows: list[Row] = []
    for slot in range(requests):
        soft = torch.randn(L, D, generator=torch.Generator().manual_seed(slot))
        commit = Row(tokens(slot), slot, 0, L - slot, False)
        if fused and slot % 3 != 2:
            rows += [commit, Row(tokens(50 + slot), slot, L - slot, L, True, soft, len(rows))]
        else:
            engine.forward([commit])
            rows.append(Row(tokens(50 + slot), slot, L - slot, L, True, soft))
    seen = []
    for in_lanes in (False, True):
        monkeypatch.setattr(Pace, "choose", lambda self, way=in_lanes: way)
        hidden = engine.forward(rows).clone()
        seen.append((hidden, [engine.snapshot(slot, 0, L - slot) for slot in range(requests)]))
    (one, kept), (other, also_kept) = seen
    assert torch.equal(one, other)
    for a, b in zip(kept, also_kept, strict=True):
        assert all((x == y).all() for x, y in zip(a.parts, b.parts, strict=True))
