"""What a pass is made of on a GPU: the operations between which activations cross memory.

Knows names, shapes and meaning; each operation exists twice, as plain torch, which says what it
computes and runs anywhere, and as kernels.
Shapes: R rows of L tokens, T = R * L, D hidden size, H query heads, G K/V heads, d head size,
E experts, k of them per token, I expert width, W sliding window, N places of a full layer's pool.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dgemma.engine.kernels.operands import Lines, Weight
from dgemma.engine.kernels.routed import Routed
from dgemma.engine.kernels.rows import PassRows


class Operations(Protocol):
    """`fp8` asks for e4m3 with a scale per token, which a quantised product takes."""

    def entered(
        self,
        ids: Tensor,
        embedding: Tensor,
        scale: float,
        conditioned: Tensor,
        denoise: Tensor,
        eps: float,
    ) -> Tensor:
        """What enters the layers `[T, D]`, as `Network.enter`; `conditioned [T, D]` is what the
        self-conditioning MLP gave.
        """
        ...

    def normed(self, x: Tensor, weight: Tensor, eps: float, fp8: bool) -> Lines:
        """RMSNorm of `[T, D]`."""
        ...

    def quantize_rows(self, x: Tensor) -> Lines:
        """e4m3 of `[M, K]`."""
        ...

    def linear(self, x: Lines, weight: Weight) -> Tensor:
        """`x @ weight.T`, `[M, N]`."""
        ...

    def gated_linear(self, x: Lines, weight: Weight) -> Tensor:
        """`gelu(gate) * up` `[M, I]` of a weight `[2I, K]`, gate rows first."""
        ...

    def rotary_table(self, rows: PassRows, frequencies: Tensor) -> Tensor:
        """What turns heads of `frequencies [d / 2]` to the positions of a pass."""
        ...

    def normed_heads(
        self,
        lines: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        table: Tensor,
        *,
        heads: int,
        groups: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q `[T, H, d]`, k and v `[T, G, d]`, normed, q and k rotated.

        Of `lines [T, (H + 2G) * d]`, or `[T, (H + G) * d]` where values are raw keys.
        """
        ...

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pool_k: Tensor,
        pool_v: Tensor,
        rows: PassRows,
        *,
        window: int | None,
        context: int,
        fp8: bool,
    ) -> Lines:
        """Attention `[T, H * d]` over [context in the pools; partner; own].

        Pools are `[slots, G, W or N, d]`, rings where `window` is W; no row has more than `context`
        tokens before it.
        """
        ...

    def keep(
        self,
        k: Tensor,
        v: Tensor,
        pool_k: Tensor,
        pool_v: Tensor,
        rows: PassRows,
        *,
        window: int | None,
    ) -> None:
        """Write the keys and values of encode rows to their places."""
        ...

    def after_attention(
        self,
        x: Tensor,
        attended: Tensor,
        post_attention: Tensor,
        pre_feedforward: Tensor,
        pre_feedforward_2: Tensor,
        router_scale: Tensor,
        eps: float,
        *,
        fp8_dense: bool,
        fp8_routed: bool,
    ) -> tuple[Tensor, Lines, Lines, Tensor]:
        """`x + norm(attended)`, and what three norms make of it: for the dense feed-forward, for
        the experts, and for the router.
        """
        ...

    def route(self, scores: Tensor, top_k: int, per_expert_scale: Tensor) -> Routed:
        """Of `scores [T, E]`, as `Router` chooses and weighs."""
        ...

    def gate_up(self, x: Lines, weight: Weight, routed: Routed) -> Tensor:
        """`gelu(gate) * up` `[T * k, I]` of `x [T, D]`, in the order of `routed.order`."""
        ...

    def down(self, inner: Lines, weight: Weight, routed: Routed) -> Tensor:
        """`[T, k, D]`, weighted, of `inner [T * k, I]`; the sum over k is what experts give."""
        ...

    def after_feed_forward(
        self,
        x: Tensor,
        dense: Tensor,
        routed: Tensor,
        post_1: Tensor,
        post_2: Tensor,
        post: Tensor,
        scalar: Tensor,
        next_weight: Tensor,
        eps: float,
        fp8: bool,
    ) -> tuple[Tensor, Lines]:
        """`(x + norm(norm(dense) + norm(sum of routed))) * scalar`, and the next norm of it.

        `scalar` is fp32 `[R]`.
        """
        ...
