"""Random passes for the kernels of attention: rows of every kind, pools, fresh keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgemma.engine.kernels.rows import PassRows

ENCODE, DENOISE = 0, 1


@dataclass(frozen=True)
class Shape:
    """One kind of layer; `window` None: full."""

    heads: int
    groups: int
    dim: int
    length: int
    window: int | None
    places: int  # of a slot in a full layer's pool


@dataclass(frozen=True)
class Pass:
    """Everything that attention of one layer reads."""

    shape: Shape
    rows: PassRows
    q: Tensor  # [R * L, H, d]
    k: Tensor  # [R * L, G, d]
    v: Tensor
    pool_k: Tensor  # [slots, G, W or N, d]
    pool_v: Tensor

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, PassRows]:
        return self.q, self.k, self.v, self.pool_k, self.pool_v, self.rows

    @property
    def context(self) -> int:
        return int(self.rows.start.max())

    def to(self, dtype: torch.dtype) -> Pass:
        names = ("q", "k", "v", "pool_k", "pool_v")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})

    def of_rows(self, *indices: int) -> Pass:
        """The pass of these rows alone; partners are among them."""
        length = self.shape.length
        rows = rows_of(
            length,
            [
                (r[0], r[1], r[2], r[3], indices.index(r[4]) if r[4] >= 0 else -1)
                for r in (tuples_of(self.rows)[i] for i in indices)
            ],
        )
        kept = torch.cat([torch.arange(i * length, (i + 1) * length) for i in indices])
        fresh = {name: getattr(self, name)[kept] for name in "qkv"}
        return replace(self, rows=rows, **fresh)


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def rows_of(length: int, rows: Sequence[tuple[int, int, int, int, int]]) -> PassRows:
    """Of (start, valid, slot, mode, partner)."""
    start, valid, slot, mode, partner = torch.tensor(rows, dtype=torch.int32).T.contiguous()
    return PassRows(length, start, valid, slot, mode.bool(), partner)


def tuples_of(rows: PassRows) -> list[tuple[int, int, int, int, int]]:
    columns = (rows.start, rows.valid, rows.slot, rows.denoise, rows.partner)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def random_pass(
    shape: Shape,
    rows: Sequence[tuple[int, int, int, int, int]],
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Pass:
    """Queries are so large that a few keys stand out; what no row may read of a pool is NaN."""
    noise = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=noise)

    lines, slots = len(rows) * shape.length, 1 + max(row[2] for row in rows)
    q = draw(lines, shape.heads, shape.dim) * 3 / shape.dim**0.5
    k, v = draw(2, lines, shape.groups, shape.dim)
    size = shape.window or shape.places
    pool_k, pool_v = draw(2, slots, shape.groups, size, shape.dim)
    drawn = Pass(shape, rows_of(shape.length, rows), q, k, v, pool_k, pool_v)
    _poison(drawn)
    return drawn.to(dtype)


def _poison(drawn: Pass) -> None:
    """Everything that no context of the pass holds."""
    rows = tuples_of(drawn.rows)
    held = torch.zeros(drawn.pool_k.shape[0], drawn.pool_k.shape[2], dtype=torch.bool)
    for start, _, slot, _, partner in rows:
        end = rows[partner][0] if partner >= 0 else start
        window = drawn.shape.window
        positions = torch.arange(max(0, end - window) if window else 0, end)
        held[slot, positions % window if window else positions] = True
    for pool in (drawn.pool_k, drawn.pool_v):
        pool.transpose(1, 2)[~held] = float("nan")


def random_rows(length: int, places: int, seed: int) -> list[tuple[int, int, int, int, int]]:
    """A chunk, an empty context, a fused pair with a short commit, a canvas, a padding row."""
    noise = torch.Generator().manual_seed(seed)

    def upto(most: int) -> int:
        return int(torch.randint(0, most + 1, (), generator=noise))

    room = places - 2 * length
    short, commit = 1 + upto(length - 1), upto(room)
    return [
        (upto(room), 1 + upto(length - 1), 2, ENCODE, -1),
        (0, length, 3, (ENCODE, DENOISE)[seed % 2], -1),
        (commit, short, 0, ENCODE, -1),
        (upto(room), length, 1, DENOISE, -1),
        (commit + short, length, 0, DENOISE, 2),
        (0, 0, 0, ENCODE, -1),
    ]
