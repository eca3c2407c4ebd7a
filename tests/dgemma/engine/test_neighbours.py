"""A token's numbers have the same bits whatever rows share its pass, and however rows are cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity, Row, Snapshot
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.errors import EngineFailure

L, D = 96, 64
LONG = 6 * L  # so long a context that products over the keys are done in several parts


@pytest.fixture(scope="module")
def engine(demo_engine: Path) -> OnnxEngine:
    """Slot 1 holds a long context."""
    opened = OnnxEngine(demo_engine, Capacity(4, 1024, 16), threads=2)
    for start in range(0, LONG, L):
        opened.forward([Row(tokens(start), 1, start, L, False)])
    return opened


def tokens(seed: int) -> Tensor:
    return torch.randint(64, 320, (L,), generator=torch.Generator().manual_seed(seed))


def run(engine: OnnxEngine, rows: Sequence[Row]) -> Tensor:
    """The pass's hidden states; the pools stay as they were."""
    before = [array.copy() for array in engine.pool.arrays]
    hidden = engine.forward(rows).clone()
    for array, old in zip(engine.pool.arrays, before, strict=True):
        array[...] = old
    return hidden


@pytest.mark.parametrize("context", [0, 30, 96, 150, 192, 250, 384])
@pytest.mark.parametrize("valid", [40, L])
def test_neighbours_change_no_bit(engine: OnnxEngine, context: int, valid: int) -> None:
    for start in range(0, context, L):
        engine.forward([Row(tokens(start + 1), 0, start, min(L, context - start), False)])
    soft = torch.randn(L, D, generator=torch.Generator().manual_seed(5))
    pair = [
        Row(tokens(7), 0, context, valid, False),
        Row(tokens(8), 0, context + valid, L, True, soft, partner=0),
    ]
    single = [Row(tokens(8), 0, context, L, True, soft)]
    far, near = Row(tokens(9), 1, LONG, L, True, soft), Row(tokens(10), 2, 0, L, True)
    other_pair = [Row(tokens(11), 3, 0, L, False), Row(tokens(12), 3, L, L, True, None, partner=3)]
    pair_alone, single_alone = run(engine, pair), run(engine, single)
    for crowd in ([far], [near], [near, far], [far] * 6):
        assert torch.equal(run(engine, pair + crowd)[:2], pair_alone)
        assert torch.equal(run(engine, single + crowd)[:1], single_alone)
    assert torch.equal(run(engine, [*single, far, near, *other_pair])[:1], single_alone)


def test_two_chunks_together_have_the_bits_that_they_have_one_after_the_other(
    engine: OnnxEngine,
) -> None:
    chunks = [Row(tokens(20 + index), 2, index * L, L, False) for index in range(4)]
    canvas = Row(tokens(30), 2, 4 * L, L, True)
    apart = [engine.forward([row])[0].clone() for row in (*chunks, canvas)]
    kept = [array[2].copy() for array in engine.pool.arrays]
    together = []
    for first in (0, 2):
        pair = [chunks[first], chunks[first + 1]._replace(partner=1)]
        crowd = [Row(tokens(9), 1, LONG, L, True), *pair]
        together += list(engine.forward(crowd)[1:].clone())
    together.append(engine.forward([canvas])[0].clone())
    assert torch.equal(torch.stack(together), torch.stack(apart))
    for array, before in zip(engine.pool.arrays, kept, strict=True):
        assert (array[2][:, : 4 * L] == before[:, : 4 * L]).all()


def test_other_things_are_done_once_behind_the_next_pass(engine: OnnxEngine) -> None:
    called: list[str] = []
    for name in ("first", "second"):
        engine.meanwhile(lambda name=name: called.append(name))  # type: ignore[misc]
    row = [Row(tokens(1), 2, 0, L, True)]
    with pytest.raises(EngineFailure):
        engine.forward([])
    assert called == []  # they wait for one that is run
    engine.forward(row)
    engine.forward(row)
    assert called == ["first", "second"]


@pytest.mark.parametrize("borders", [(1, 60, 156, 200), (90, 91, 187, 283), (50, 100, 150, 246)])
def test_where_chunks_end_changes_no_bit(engine: OnnxEngine, borders: tuple[int, ...]) -> None:
    """Neither of what is kept for a text nor of a canvas behind it."""
    total = 350
    text = torch.cat([tokens(start) for start in range(20, 24)])[:total]
    canvas = Row(tokens(8), 0, total, L, True)
    seen: list[tuple[Tensor, Snapshot]] = []
    for cuts in (tuple(range(L, total, L)), borders):
        start = 0
        for end in (*cuts, total):
            for begin in range(start, end, L):
                stop = min(end, begin + L)
                padded = torch.cat([text[begin:stop], torch.zeros(L, dtype=torch.int64)])[:L]
                engine.forward([Row(padded, 0, begin, stop - begin, False)])
            start = end
        seen.append((engine.forward([canvas]).clone(), engine.snapshot(0, 0, total)))
    (hidden, kept), (other_hidden, other_kept) = seen
    assert torch.equal(hidden, other_hidden)
    assert all((a == b).all() for a, b in zip(kept.parts, other_kept.parts, strict=True))
