from __future__ import annotations

import pytest
import torch

from dgemma.engine.base import Row
from dgemma.engine.device_pools import put_positions, read_positions, write_rows
from dgemma.engine.kv_pool import KVPool
from tests.dgemma.engine.fake_engine import geometry_of

GEOMETRY = geometry_of(canvas_length=8, sliding_window=6)
IDS = torch.arange(8)


@pytest.mark.parametrize("seed", range(5))
def test_rows_go_where_the_pools_of_the_host_keep_them(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    theirs = KVPool(GEOMETRY, slots=3, context=40)
    ours = [torch.zeros(array.shape) for array in theirs.arrays]
    for step in range(4):
        rows = [
            Row(IDS, 2, 7 * step, (7, 3, 8, 1)[step], denoise=False),
            Row(IDS, 1, 5, 8, denoise=True),
            Row(IDS, 0, 8 * step, 8, denoise=False),
        ]
        fresh = [
            torch.randn(3, array.shape[1], 8, array.shape[3], generator=generator)
            for array in theirs.arrays
        ]
        theirs.write(rows, [tensor.numpy() for tensor in fresh])
        write_rows(GEOMETRY, rows, fresh, ours)
        for mine, other in zip(ours, theirs.arrays, strict=True):
            assert torch.equal(mine, torch.from_numpy(other))


def test_a_pass_without_encode_rows_writes_nothing() -> None:
    write_rows(GEOMETRY, [Row(IDS, 0, 0, 8, denoise=True)], [], [])


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (5, 11), (8, 24)])
def test_copies_are_those_of_the_host_and_go_to_the_same_places(start: int, stop: int) -> None:
    theirs = KVPool(GEOMETRY, slots=3, context=40)
    noise = torch.Generator().manual_seed(start)
    ours = [torch.randn(array.shape, generator=noise) for array in theirs.arrays]
    for mine, other in zip(ours, theirs.arrays, strict=True):
        other[:] = mine.numpy()
    wanted, got = theirs.read(1, start, stop), read_positions(GEOMETRY, 1, start, stop, ours)
    assert (got.start, got.stop, got.nbytes) == (start, stop, wanted.nbytes)
    for part, other in zip(got.parts, wanted.parts, strict=True):
        assert torch.equal(part, torch.from_numpy(other))
    theirs.put(2, wanted)
    put_positions(GEOMETRY, 2, got, ours)
    for mine, other in zip(ours, theirs.arrays, strict=True):
        assert torch.equal(mine, torch.from_numpy(other))
