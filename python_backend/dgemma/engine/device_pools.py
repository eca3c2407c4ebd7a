"""Keys and values of every slot in device memory: how they are written, and copied.

Knows lines of pools and of fresh K/V; knows nothing of masks. The same places as `kv_pool` writes
in host memory, in a constant number of operations however many rows are kept.
Shapes: R rows, G K/V heads, L row length, d head size, W window, N context.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgemma.engine.base import Row, Snapshot
from dgemma.geometry import Geometry, LayerGeometry


def write_rows(
    geometry: Geometry, rows: Sequence[Row], fresh: Sequence[Tensor], pools: Sequence[Tensor]
) -> None:
    """Keep the K/V of encode rows: `fresh` is K, V per layer `[R, G, L, d]`.

    `pools` are as many, `[slots, G, W or N, d]`. All work goes into torch's current stream.
    """
    if all(row.denoise for row in rows):
        return
    lines: dict[tuple[LayerGeometry, int], tuple[Tensor, Tensor]] = {}
    for i, layer in enumerate(geometry.layers):
        for new, pool in zip(fresh[2 * i : 2 * i + 2], pools[2 * i : 2 * i + 2], strict=True):
            key = (layer, pool.shape[2])
            if key not in lines:
                source, target = _lines(geometry, layer, rows, pool.shape[2])
                lines[key] = (
                    source.to(pool.device, non_blocking=True),
                    target.to(pool.device, non_blocking=True),
                )
            source, target = lines[key]
            flat = pool.flatten(0, 2)
            flat.index_copy_(0, target, new.flatten(0, 2).index_select(0, source))


def read_positions(
    geometry: Geometry, slot: int, start: int, stop: int, pools: Sequence[Tensor]
) -> Snapshot:
    """Copies of positions of a slot, `[G, n, d]` each; of rings, of the last W of them."""
    parts = [
        pool[slot].index_select(1, place)
        for pool, place in zip(pools, _places(geometry, start, stop, pools), strict=True)
    ]
    return Snapshot(start, stop, parts, sum(part.nbytes for part in parts))


def put_positions(
    geometry: Geometry, slot: int, snapshot: Snapshot, pools: Sequence[Tensor]
) -> None:
    """Write what `read_positions` has copied to its positions in this slot."""
    places = _places(geometry, snapshot.start, snapshot.stop, pools)
    for pool, place, part in zip(pools, places, snapshot.parts, strict=True):
        pool[slot].index_copy_(1, place, part)


def _places(geometry: Geometry, start: int, stop: int, pools: Sequence[Tensor]) -> list[Tensor]:
    """Where positions live, for each pool."""
    linear = torch.arange(start, stop, device=pools[0].device)
    window = geometry.sliding_window
    ring = linear[-window:] % window
    return [linear if layer.is_full else ring for layer in geometry.layers for _ in "kv"]


def _lines(
    geometry: Geometry, layer: LayerGeometry, rows: Sequence[Row], size: int
) -> tuple[Tensor, Tensor]:
    """Lines of fresh K/V `[R * G * L, d]` and the lines of a pool that they go to."""
    heads = torch.arange(layer.num_key_value_heads)[:, None]  # [G, 1]
    length, groups = geometry.canvas_length, layer.num_key_value_heads
    sources, targets = [], []
    for index, row in enumerate(rows):
        if row.denoise:
            continue
        # Of a row longer than the window only the last W tokens have a place in the ring.
        skip = 0 if layer.is_full else max(0, row.valid - size)
        kept = torch.arange(skip, row.valid)
        place = row.start + kept if layer.is_full else (row.start + kept) % size
        sources.append(((index * groups + heads) * length + kept).flatten())
        targets.append(((row.slot * groups + heads) * size + place).flatten())
    return torch.cat(sources), torch.cat(targets)
