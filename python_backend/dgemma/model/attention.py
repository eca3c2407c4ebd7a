"""Attention of a row over its own K/V, its slot's context and its partner's fresh K/V.

Knows keys, masks and head groups; knows nothing of experts or of how a pool is written.
What a neighbour needs must not move a row's numbers: keys whose number varies from pass to pass
stand last, where they add exact zeros behind what is present. In full layers that is the context,
in sliding layers, whose rings never vary, the partner, which most passes do without.
Shapes: R rows, L row length, H query heads, G K/V heads, d head size, S keys of a row,
W sliding window, N context positions that the pass reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma.geometry import Geometry, LayerGeometry
from dgemma.model.layers import RMSNorm, rotary_tables, rotate

ABSENT = 2**40  # a key position no query can see
MASKED = -1e30


@dataclass(frozen=True)
class Keys:
    """What one kind of layer attends to in this pass; the same for all its layers."""

    bias: Tensor  # fp32 [R, 1, L, S], 0 or MASKED
    cos: Tensor  # fp32 [R, L, d / 2]
    sin: Tensor


@dataclass(frozen=True)
class RowIndex:
    """Where the rows of a pass stand. All int64; `denoise` is bool."""

    denoise: Tensor  # [R], False: encode
    start: Tensor  # [R], absolute position of the first token
    valid: Tensor  # [R], tokens of the row that are real
    context: Tensor  # [R], tokens of the slot's pool that the row may see
    slot: Tensor  # [R]
    partner: Tensor  # [R], the row whose fresh K/V come before this one, or -1
    context_index: Tensor  # [N] = arange(N)
    partner_index: Tensor  # [L] = arange(L), or [0] where no row has a partner


def build_keys(g: Geometry, full: bool, rows: RowIndex, frequencies: Tensor) -> Keys:
    """Positions and masks of every key, computed from integers alone."""
    window, length = g.sliding_window, g.canvas_length
    queries = rows.start[:, None] + torch.arange(length)  # [R, L]
    last = rows.context[:, None] - 1  # [R, 1]
    if full:
        context = torch.where(rows.context_index <= last, rows.context_index, ABSENT)
    else:
        # Position p lives at p mod W, so an index names the last such position before `context`.
        context = last - torch.remainder(last - torch.arange(window), window)
        context = torch.where(context >= 0, context, ABSENT)
    other = rows.partner.clamp(min=0)
    index = torch.arange(length) if full else rows.partner_index
    there = (rows.partner >= 0)[:, None] & (index < rows.valid[other][:, None])
    partner = torch.where(there, rows.start[other][:, None] + index, ABSENT)
    parts = [queries, partner, context] if full else [queries, context, partner]
    keys = torch.cat(parts, 1)[:, None, :]  # [R, 1, S]
    # A denoise row sees all of its canvas, an encode row what is not after the query.
    upper = torch.where(rows.denoise[:, None], queries[:, -1:], queries)[:, :, None]
    seen = keys <= upper  # [R, L, S]
    if not full:
        # One rectangle for a canvas: the last W - 1 tokens before it, whatever the query.
        reach = torch.where(rows.denoise[:, None], rows.start[:, None], queries) - (window - 1)
        seen = seen & (keys >= reach[:, :, None])
    bias = torch.where(seen, 0.0, MASKED)[:, None]
    cos, sin = rotary_tables(queries, frequencies)
    return Keys(bias, cos, sin)


class Attention(nn.Module):
    """Grouped-query attention; full layers have no `v_proj` and use the raw K projection."""

    def __init__(self, g: Geometry, layer: LayerGeometry) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = (
            g.num_attention_heads,
            layer.num_key_value_heads,
            layer.head_dim,
        )
        self.full = layer.is_full
        d = g.hidden_size
        self.q_proj = nn.Linear(d, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(d, self.kv_heads * self.dim, bias=False)
        self.v_proj = None if layer.is_full else nn.Linear(d, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, d, bias=False)
        self.q_norm = RMSNorm(self.dim, g.rms_norm_eps)
        self.k_norm = RMSNorm(self.dim, g.rms_norm_eps)
        self.v_norm = RMSNorm(self.dim, g.rms_norm_eps, with_scale=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        parts: Tensor = x.unflatten(-1, (heads, self.dim))
        return parts.transpose(1, 2)  # [R, heads, L, d]

    def project(self, h: Tensor, keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
        """q `[R, H, L, d]`, k and v `[R, G, L, d]` of `h [R, L, D]`, normed and rotated."""
        raw = self.split(self.k_proj(h), self.kv_heads)
        values = raw if self.v_proj is None else self.split(self.v_proj(h), self.kv_heads)
        q = rotate(self.q_norm(self.split(self.q_proj(h), self.heads)), keys.cos, keys.sin)
        k = rotate(self.k_norm(raw), keys.cos, keys.sin)
        return q, k, self.v_norm(values)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Keys,
        rows: RowIndex,
        pool_k: Tensor,
        pool_v: Tensor,
    ) -> Tensor:
        """Output `[R, L, D]` of what `project` gave; pools are `[slots, G, W or N, d]`."""
        # Scale 1: the q and k norms do the scaling.
        mixed = F.scaled_dot_product_attention(
            q,
            self.with_context(k, pool_k, rows),
            self.with_context(v, pool_v, rows),
            attn_mask=keys.bias.to(q.dtype),
            scale=1.0,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def with_context(self, fresh: Tensor, pool: Tensor, rows: RowIndex) -> Tensor:
        """The keys or values in the order of `build_keys`, `[R, G, S, d]`."""
        other, context = rows.partner.clamp(min=0), self.context(pool, rows)
        if self.full:
            return torch.cat([fresh, fresh.index_select(0, other), context], 2)
        # Sliced before it is gathered, so that a pass without partners copies nothing.
        partner = fresh[:, :, : rows.partner_index.shape[0]].index_select(0, other)
        return torch.cat([fresh, context, partner], 2)

    def context(self, pool: Tensor, rows: RowIndex) -> Tensor:
        """The slots' rings, or of full layers just the positions that the pass reads."""
        if not self.full:
            return pool.index_select(0, rows.slot)
        heads = torch.arange(self.kv_heads)[:, None]
        line = rows.slot[:, None, None] * self.kv_heads + heads  # [R, G, 1]
        # `embedding` is a plain gather of vectors, here of the pool's positions.
        return F.embedding(line * pool.shape[2] + rows.context_index, pool.flatten(0, 2))
