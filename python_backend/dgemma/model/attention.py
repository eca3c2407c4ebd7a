"""Attention of a row over its own K/V and the context of its slot, its partner's tokens included.

Knows keys, masks and head groups; knows nothing of experts or of how a pool is written.
A row attends to a copy of its slot's context, into which its own fresh K/V and its partner's are
written, so that a commit and a first denoise in one pass read what they would read in two. A token
stands where its position alone says, and what is absent or masked adds exact zeros: neither a
neighbour with a longer context nor the borders of the chunks that a prompt was encoded in move a
row's numbers, so cached K/V are those that encoding again would give. Queries may be a share of
each row's tokens: others compute the rest at the same time, and what all attend to stands in memory
that they have in common.
Shapes: R rows, P pairs, L row length, T tokens of a share (L where there is one), H query heads, G
K/V heads, d head size, N context positions that the pass reads (of a ring at most its W), S = N + L
keys of a row.
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
class RowIndex:
    """Where the rows of a pass stand. All int64; `denoise` is bool."""

    denoise: Tensor  # [R], False: encode
    start: Tensor  # [R], absolute position of the first token, and the length of the context
    valid: Tensor  # [R], tokens of the row that are real
    slot: Tensor  # [R]
    pair_from: Tensor  # [P], the encode rows whose fresh K/V stand right before …
    pair_to: Tensor  # [P], … these rows
    context_index: Tensor  # [N] = arange(N), what full layers read of a pool
    ring_index: Tensor  # [N] = arange(N), what sliding layers do
    tokens: Tensor | None = None  # [T] = arange(T) + the first of them; None: all L


@dataclass(frozen=True)
class Keys:
    """What one kind of layer attends to in this pass; the same for all its layers."""

    bias: Tensor  # fp32 [R, 1, T, S], 0 or MASKED
    cos: Tensor  # fp32 [R, T, d / 2]
    sin: Tensor
    context: Tensor | None  # [R * G * S], lines of a pool; None: all lines of what stands there
    length: int  # S: worked out from what is gathered, a compiler would not know it from R * S
    source: Tensor  # [(R + P) * G * T], lines of fresh K or V `[R * G * T, d]` …
    target: Tensor  # [(R + P) * G * T], … that go to these lines of the context `[R * G * S, d]`


def build_keys(g: Geometry, layer: LayerGeometry, rows: RowIndex, size: int, table: Tensor) -> Keys:
    """Positions, masks and places of every key, computed from integers alone.

    For layers like `layer`, whose pools hold `size` positions and whose rotary embedding has the
    frequencies `table`.
    """
    window, length = g.sliding_window, g.canvas_length
    own = torch.arange(length)
    linear = rows.start[:, None] + own  # [R, L]
    queries = linear if rows.tokens is None else rows.start[:, None] + rows.tokens  # [R, T]
    index = rows.context_index if layer.is_full else rows.ring_index
    total = index.shape[0] + length
    places = torch.cat([index, index.shape[0] + own])  # [S]
    ring = places[-1:] + 1  # S, as a tensor
    # A denoise row sees all of its canvas, an encode row what is not after the query.
    upper = torch.where(rows.denoise[:, None], linear[:, -1:], queries)[:, :, None]
    if layer.is_full:
        keys = places[None, None]  # [1, 1, S]
        held = torch.minimum(places, index[-1:])[None]  # own places may lie beyond the pool's end
    else:
        # Position p stands at p mod S, so a place names the last such position of the row.
        last = linear[:, -1:]  # [R, 1]
        keys = last - torch.remainder(last - places, ring)
        held = torch.remainder(keys, window)  # [R, S]
        keys = torch.where(keys >= 0, keys, ABSENT)[:, None]
    seen = keys <= upper  # [R, T, S]
    if not layer.is_full:
        # One rectangle for a canvas: the last W - 1 tokens before it, whatever the query.
        reach = torch.where(rows.denoise[:, None], rows.start[:, None], queries) - (window - 1)
        seen = seen & (keys >= reach[:, :, None])
    bias = torch.where(seen, 0.0, MASKED)[:, None]
    cos, sin = rotary_tables(queries, table)

    heads = torch.arange(layer.num_key_value_heads)[:, None]  # [G, 1]
    context: Tensor | None = None
    if rows.tokens is None:
        lines = rows.slot[:, None, None] * layer.num_key_value_heads + heads  # [R, G, 1]
        context = (lines * size + held[:, None]).flatten()
    # What rows have of these tokens stands in their own context, and in that of a partner behind
    # them. A token without a place there, padding or older than a ring, goes to its own row again.
    own = own if rows.tokens is None else rows.tokens  # [T]
    end = rows.valid[rows.pair_from, None]  # [P, 1]
    has_place = own < end
    if not layer.is_full:
        has_place = has_place & (own >= end - window)
    reader = torch.where(has_place, rows.pair_to[:, None], rows.pair_from[:, None])  # [P, T]
    each = torch.arange(rows.start.shape[0])
    writer = torch.cat([each, rows.pair_from])  # [R + P]
    place = queries if layer.is_full else torch.remainder(queries, ring)  # [R, T]

    def flat(row: Tensor, line: Tensor, lines: int | Tensor) -> Tensor:
        head = row[:, None] * layer.num_key_value_heads + heads  # [R + P, G, T or 1]
        return (head * lines + line[:, None]).flatten()

    width = queries.shape[1]
    source = flat(writer[:, None], torch.arange(width)[None], width)
    readers = torch.cat([each[:, None].expand_as(queries), reader])
    return Keys(bias, cos, sin, context, total, source, flat(readers, place[writer], total))


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
        self, q: Tensor, k: Tensor, v: Tensor, keys: Keys, pool_k: Tensor, pool_v: Tensor
    ) -> Tensor:
        """Output `[R, T, D]` of what `project` gave; pools are `[slots, G, W or max N, d]`, or
        `[R, G, S, d]` where queries are a share.
        """
        # Scale 1: the q and k norms do the scaling.
        mixed = F.scaled_dot_product_attention(
            q,
            with_context(k, pool_k, keys),
            with_context(v, pool_v, keys),
            attn_mask=keys.bias.to(q.dtype),
            scale=1.0,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def with_context(fresh: Tensor, pool: Tensor, keys: Keys) -> Tensor:
    """The keys or values in the order of `build_keys`, `[R, G, S, d]`."""
    context = pool.flatten(0, 2)
    # `embedding` is a plain gather of vectors.
    if keys.context is not None:
        context = F.embedding(keys.context, context)  # [R * G * S, d]
    context = context.index_put((keys.target,), F.embedding(keys.source, fresh.flatten(0, 2)))
    keyed: Tensor = context.unflatten(0, (*fresh.shape[:2], keys.length))
    return keyed
