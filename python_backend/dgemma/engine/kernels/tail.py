"""`dgemma.tail.statistics` as kernels: the same statistics, and logits never leave a program.

Knows chunks, tiles and scratch; knows nothing of acceptance, pinned tokens or stopping.
`dgemma.tail.statistics.statistics` is the reference; it rounds logits to the dtype of the hidden
states, these kernels keep them in fp32.
Shapes: R rows, L canvas length, M = R * L lines, D hidden size, V vocabulary.

At V = 262144 and D = 2816 one canvas is two products of 378 GFLOP, 0.38 ms each at 990 TFLOPS, and
both read the embedding, 2.95 GB or 0.61 ms at 4.8 TB/s: matrix units bound it from the first canvas
on, so 128 lines by 256 ids or columns stand in a program. What `head` does with a logit is some 58
instructions, 4 of them of the special function units: 15 thousand cycles of a program that
multiplies for 45 thousand. Scratch is a chunk of weights, 32 MiB a canvas, and sums of 17 MiB that
each chunk reads and writes. Chunks and splits are the same whatever the number of lines, and so is
the order in which a line is summed up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from dgemma.engine.kernels import tail_kernels as kernels
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.tiles import chip_at
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry
from dgemma.tail.noise import Race
from dgemma.tail.statistics import Head, Statistics


@dataclass(frozen=True)
class Tiles:
    """How the vocabulary is cut, and how products are launched."""

    chunk: int = 65536  # ids whose weights are held at a time
    splits: int = 6  # of a chunk, for the mean: one canvas gives every multiprocessor a program
    lines: int = 128
    ids: int = 128  # of which a program has two tiles
    columns: int = 128  # of the mean, likewise
    depth: int = 64  # what a product takes at a time
    num_warps: int = 8
    num_stages: int = 4

    @classmethod
    def of(cls, chip: Chip) -> Tiles:
        if chip.has_wide_mma:
            return cls()
        return cls(32768, splits=3, ids=64, columns=64, depth=32)

    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def statistics(
    head: Head, hidden: Tensor, temperature: Tensor, race: Race, tiles: Tiles | None = None
) -> Statistics:
    """Sweep the vocabulary once, in chunks.

    `hidden [R, L, D]` is rounded to the embedding's dtype, `temperature` is fp32 `[R, 1, 1]`.
    """
    tiles = tiles or tiles_at(hidden.device)
    rows, length, width = hidden.shape
    vocab, lines = len(head.embedding), rows * length
    scratch = _Scratch.of(lines, width, vocab, head.embedding, tiles)
    seen, sums, weights = scratch.seen, scratch.sums, scratch.weights
    states, embedding = hidden.to(head.embedding.dtype).contiguous(), head.embedding.contiguous()
    warmth, words = temperature.contiguous(), race.words
    positions, high = words.positions.contiguous(), words.high.contiguous()
    line_tiles = rows * triton.cdiv(length, tiles.lines)
    for chunk, first in enumerate(range(0, vocab, tiles.chunk)):
        ids = min(tiles.chunk, vocab - first)
        before, after = scratch.references[chunk], scratch.references[chunk + 1]
        id_tiles = triton.cdiv(ids, tiles.ids)
        kernels.head[(line_tiles, triton.cdiv(id_tiles, 2))](
            *(states, embedding, warmth, positions, high, weights, before, after),
            *(scratch.tile_reference, *seen, first // tiles.ids),
            **_head_constants(vocab, length, width, head.softcap, tiles),
            **tiles.launch(),
        )
        kernels.align[(line_tiles, id_tiles)](
            *(weights, after, scratch.tile_reference), **_align_constants(length, tiles)
        )
        kernels.mix[(triton.cdiv(width, 2 * tiles.columns), line_tiles, tiles.splits)](
            *(weights, embedding, before, after, sums, first, ids),
            **_mix_constants(vocab, length, width, tiles),
            **tiles.launch(),
        )
    view = Statistics(
        hidden.new_empty(rows, length, dtype=torch.int64),
        hidden.new_empty(rows, length, dtype=torch.int64),
        hidden.new_empty(rows, length, dtype=torch.float32),
        hidden.new_empty(hidden.shape),
    )
    kernels.finish[(lines,)](
        *(*seen, scratch.references[-1], sums, view.argmax, view.sampled, view.entropy, view.soft),
        **_finish_constants(vocab, width, tiles),
    )
    return view


@dataclass(frozen=True)
class _Scratch:
    """What kernels tell one another."""

    weights: Tensor  # [M, chunk], in the embedding's dtype
    references: Tensor  # int32 [chunks + 1, M]
    tile_reference: Tensor  # int32 [tiles of a chunk, M]
    seen: tuple[Tensor, ...]  # of each tile `[M, tiles]`: four in fp32, two in int32
    sums: Tensor  # fp32 [splits, M, D]

    @classmethod
    def of(cls, lines: int, width: int, vocab: int, like: Tensor, tiles: Tiles) -> _Scratch:
        parts, chunks = triton.cdiv(vocab, tiles.ids), triton.cdiv(vocab, tiles.chunk)
        dtypes = 4 * [torch.float32] + 2 * [torch.int32]
        return cls(
            like.new_empty(lines, tiles.chunk),
            like.new_full((chunks + 1, lines), kernels.LOWEST.value, dtype=torch.int32),
            like.new_empty(tiles.chunk // tiles.ids, lines, dtype=torch.int32),
            tuple(like.new_empty(lines, parts, dtype=dtype) for dtype in dtypes),
            like.new_empty(tiles.splits, lines, width, dtype=torch.float32),
        )


def variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """What a tail over this geometry's vocabulary launches."""
    tiles = Tiles.of(chip)
    vocab, length, width = geometry.vocab_size, geometry.canvas_length, geometry.hidden_size
    softcap = geometry.final_logit_softcapping
    products = partial(Variant, num_warps=tiles.num_warps, num_stages=tiles.num_stages)
    others = partial(Variant, hot=False)
    constants = _head_constants(vocab, length, width, softcap, tiles)
    yield products("tail.head", kernels.head, _HEAD, constants, frozenset({"first_tile"}))
    constants = _mix_constants(vocab, length, width, tiles)
    yield products("tail.mix", kernels.mix, _MIX, constants, frozenset({"first", "ids"}))
    yield others("tail.align", kernels.align, _ALIGN, _align_constants(length, tiles))
    yield others("tail.finish", kernels.finish, _FINISH, _finish_constants(vocab, width, tiles))


_SEEN = {
    **dict.fromkeys(("top", "mass", "weighted", "arrival"), "*fp32"),
    **dict.fromkeys(("argmax", "winner"), "*i32"),
}
_HEAD = {
    "hidden": "*bf16",
    "embedding": "*bf16",
    "temperature": "*fp32",
    "positions": "*i32",
    "high": "*i32",
    "weights": "*bf16",
    **dict.fromkeys(("before", "after", "tile_reference"), "*i32"),
    **_SEEN,
    "first_tile": "i32",
}
_ALIGN = {"weights": "*bf16", "after": "*i32", "tile_reference": "*i32"}
_MIX = {
    "weights": "*bf16",
    "embedding": "*bf16",
    "before": "*i32",
    "after": "*i32",
    "sums": "*fp32",
    "first": "i32",
    "ids": "i32",
}
_FINISH = {
    **_SEEN,
    "reference": "*i32",
    "sums": "*fp32",
    "argmax_out": "*i64",
    "sampled_out": "*i64",
    "entropy_out": "*fp32",
    "soft_out": "*bf16",
}


def _head_constants(
    vocab: int, length: int, width: int, softcap: float, tiles: Tiles
) -> dict[str, Any]:
    return {
        "VOCAB": vocab,
        "LENGTH": length,
        "WIDTH": width,
        "SOFTCAP": softcap,
        "CHUNK": tiles.chunk,
        "TILES": triton.cdiv(vocab, tiles.ids),
        "BLOCK_M": tiles.lines,
        "BLOCK_V": tiles.ids,
        "BLOCK_K": tiles.depth,
    }


def _align_constants(length: int, tiles: Tiles) -> dict[str, Any]:
    return {
        "LENGTH": length,
        "CHUNK": tiles.chunk,
        "BLOCK_M": tiles.lines,
        "BLOCK_V": tiles.ids,
    }


def _mix_constants(vocab: int, length: int, width: int, tiles: Tiles) -> dict[str, Any]:
    return {
        "VOCAB": vocab,
        "LENGTH": length,
        "WIDTH": width,
        "CHUNK": tiles.chunk,
        "SPLITS": tiles.splits,
        "BLOCK_M": tiles.lines,
        "BLOCK_D": tiles.columns,
        "BLOCK_K": tiles.depth,
    }


def _finish_constants(vocab: int, width: int, tiles: Tiles) -> dict[str, Any]:
    parts = triton.cdiv(vocab, tiles.ids)
    return {
        "ROOT": math.sqrt(width),
        "WIDTH": width,
        "TILES": parts,
        "SPLITS": tiles.splits,
        "WIDTH_PADDED": triton.next_power_of_2(width),
        "TILES_PADDED": triton.next_power_of_2(parts),
    }


def tiles_at(device: torch.device) -> Tiles:
    """The device's; ConfigurationError where its compute capability has no kernels."""
    return Tiles.of(chip_at(device))
