"""Heads, attention and what is kept of them, in plain torch: what the kernels compute.

Knows the same as `dgemma.model.attention`, for rows in the form of `PassRows`; works in the dtype
of its inputs, and reads where rows stand on the host.
Shapes: R rows, L row length, H query heads, G K/V heads, d head size, W window, N context.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma.engine.kernels.norms_reference import quantize_rows
from dgemma.engine.kernels.operands import Lines
from dgemma.engine.kernels.rows import PassRows
from dgemma.model.layers import unscaled_norm

MASKED = -1e30


class RowNumbers(NamedTuple):
    """One row of a pass, on the host."""

    start: int
    valid: int
    slot: int
    denoise: bool
    partner: int


def numbers(rows: PassRows) -> list[RowNumbers]:
    columns = (rows.start, rows.valid, rows.slot, rows.denoise, rows.partner)
    lists = [column.tolist() for column in columns]
    return [RowNumbers(*values) for values in zip(*lists, strict=True)]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    rows: PassRows,
    *,
    window: int | None,
    context: int,
    fp8: bool = False,
) -> Lines:
    """As `attention.attend`; the bound of the context decides nothing."""
    del context
    queries, fresh_k, fresh_v = (
        x.unflatten(0, (rows.count, rows.length)).transpose(1, 2) for x in (q, k, v)
    )  # [R, H or G, L, d]
    listed = numbers(rows)
    mixed = []
    for index, row in enumerate(listed):
        # Runs of positions, and where their keys and values are.
        before = row if row.partner < 0 else listed[row.partner]
        low = max(0, row.start - window + 1) if window else 0
        reached = span(min(low, before.start), before.start, q.device)
        own = span(row.start, row.start + rows.length, q.device)
        held = reached % window if window else reached
        positions, keys, values = (
            [reached],
            [pool_k[row.slot][:, held]],
            [pool_v[row.slot][:, held]],
        )
        if row.partner >= 0:
            positions.append(span(before.start, before.start + before.valid, q.device))
            keys.append(fresh_k[row.partner, :, : before.valid])
            values.append(fresh_v[row.partner, :, : before.valid])
        seen = visible(row, own, torch.cat([*positions, own]), window)
        mixed.append(
            F.scaled_dot_product_attention(
                queries[index],
                torch.cat([*keys, fresh_k[index]], 1),
                torch.cat([*values, fresh_v[index]], 1),
                # Finite: a query without a key is a mean of anything.
                attn_mask=torch.where(seen, 0.0, MASKED).to(q.dtype),
                scale=1.0,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    lines = torch.stack(mixed).transpose(1, 2).flatten(2).flatten(0, 1)
    return quantize_rows(lines) if fp8 else Lines(lines)


def span(start: int, stop: int, device: torch.device) -> Tensor:
    return torch.arange(start, stop, device=device)


def visible(row: RowNumbers, queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Whether queries of a row see keys, by their positions, `[queries, keys]`."""
    if row.denoise:
        # One rectangle for a canvas: the last W - 1 tokens before it, whatever the query.
        first = row.start - window + 1 if window else 0
        return (keys >= first).expand(len(queries), -1)
    distance = queries[:, None] - keys
    return (distance >= 0) & (distance < window) if window else distance >= 0


def rotary_table(rows: PassRows, frequencies: Tensor) -> Tensor:
    """As `heads.rotary_table`."""
    positions = rows.start[:, None] + span(0, rows.length, rows.start.device)
    angles = positions.flatten()[:, None].float() * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def normed_heads(
    lines: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    table: Tensor,
    *,
    heads: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `heads.normed_heads`."""
    parts = lines.float().unflatten(1, (-1, q_weight.shape[0]))  # [M, heads, d]
    q, k = parts[:, :heads], parts[:, heads : heads + groups]
    v = parts[:, -groups:]
    q, k = (
        rotated(unscaled_norm(x, eps) * weight.float(), table)
        for x, weight in ((q, q_weight), (k, k_weight))
    )
    return q.to(lines.dtype), k.to(lines.dtype), unscaled_norm(v, eps).to(lines.dtype)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Half-split rotary embedding of `[M, heads, d]`."""
    cos, sin = table[:, :, None]  # [M, 1, d / 2]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def keep(
    k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, rows: PassRows, *, window: int | None
) -> None:
    """As `keep.keep`."""
    for index, row in enumerate(numbers(rows)):
        if row.denoise:
            continue
        kept = span(max(0, row.valid - window) if window else 0, row.valid, k.device)
        held = (row.start + kept) % window if window else row.start + kept
        for fresh, pool in ((k, pool_k), (v, pool_v)):
            pool[row.slot][:, held] = fresh[index * rows.length + kept].transpose(0, 1)
