"""An Engine without a network: hidden states are a hash of what a row may see.

It keeps each slot's tokens in place of K/V, refuses rows that do not continue them, and records
every pass, so that a scheduler can be tested in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgemma.engine.base import NO_PARTNER, Capacity, Row, Snapshot
from dgemma.engine.batch import check
from dgemma.errors import EngineFailure
from dgemma.geometry import FULL, SLIDING, Geometry, LayerGeometry, Rope
from dgemma_build.demo.vocabulary import FIRST_BYTE, VOCAB_SIZE

# The token that an engine wants at each position of a canvas, from the tokens before the canvas.
Wish = Callable[[tuple[int, ...]], Sequence[int]]


def geometry_of(
    *,
    canvas_length: int = 8,
    vocab_size: int = VOCAB_SIZE,
    hidden_size: int = VOCAB_SIZE,
    sliding_window: int = 6,
    layer_types: Sequence[str] = (SLIDING, FULL),
    num_attention_heads: int = 4,
    max_position_embeddings: int = 256,
) -> Geometry:
    """A small geometry; where no network is built, the hidden size may be the vocabulary's."""
    return Geometry(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=8,
        num_attention_heads=num_attention_heads,
        layers=tuple(
            LayerGeometry(kind, 6 if kind == FULL else 4, 1 if kind == FULL else 2)
            for kind in layer_types
        ),
        sliding_rope=Rope("default", 10_000.0),
        full_rope=Rope("proportional", 1_000_000.0, 0.5),
        sliding_window=sliding_window,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=8,
        canvas_length=canvas_length,
        max_position_embeddings=max_position_embeddings,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
    )


def hashed(context: tuple[int, ...], length: int) -> list[int]:
    """Bytes (never a control token) that depend on every token of the context."""
    state = 1469598103
    for token in context:
        state = (state ^ token) * 16777619 % 2**32
    return [FIRST_BYTE + 32 + (state // 7 + 31 * position) % 90 for position in range(length)]


class FakeEngine:
    """Wants the tokens of `wish`; `wavering` adds noise that is a function of the row alone."""

    reruns = 0

    def __init__(
        self,
        slots: int = 4,
        *,
        geometry: Geometry | None = None,
        context: int = 256,
        rows: int | None = None,
        wish: Wish | None = None,
        wavering: float = 0.0,
    ) -> None:
        self.geometry = geometry or geometry_of()
        self.capacity = Capacity(slots, context, 2 * slots if rows is None else rows)
        self.wish = wish or (lambda context: hashed(context, self.geometry.canvas_length))
        self.wavering = wavering
        self.passes: list[list[Row]] = []
        self.contents: list[list[int]] = [[] for _ in range(slots)]
        self.failure: Exception | None = None  # raised once, by the next pass
        self._embedding = torch.eye(self.geometry.vocab_size, self.geometry.hidden_size)

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        tokens = self.contents[slot][start:stop]
        assert len(tokens) == stop - start
        return Snapshot(start, stop, [tokens], 8 * len(tokens))

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        assert snapshot.start == 0 or snapshot.start == len(self.contents[slot])
        self.contents[slot][snapshot.start :] = snapshot.parts[0]

    def embedding(self) -> Tensor:
        return self._embedding

    def forward(self, rows: Sequence[Row]) -> Tensor:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        check(rows, self.geometry, self.capacity)
        seen = [self._before(rows, row) for row in rows]
        self.passes.append(list(rows))
        hidden = torch.stack([self._hidden(a, row) for a, row in zip(seen, rows, strict=True)])
        for row in rows:
            if not row.denoise:
                self.contents[row.slot][row.start :] = row.ids[: row.valid].tolist()
        return hidden

    def _before(self, rows: Sequence[Row], row: Row) -> tuple[int, ...]:
        """The tokens that stand before a row: its slot's, then its partner's."""
        partner = None if row.partner == NO_PARTNER else rows[row.partner]
        context = row.start if partner is None else partner.start
        held = self.contents[row.slot]
        # A slot that begins again at 0 forgets its last request.
        if context > len(held) or (0 < context < len(held)):
            raise EngineFailure(f"slot {row.slot} holds {len(held)} tokens, a row reads {context}")
        before = held[:context]
        if partner is not None:
            before = before + partner.ids[: partner.valid].tolist()
        if len(before) != row.start:
            raise EngineFailure(f"a row starts at {row.start}, {len(before)} tokens before it")
        return tuple(before)

    def _hidden(self, before: tuple[int, ...], row: Row) -> Tensor:
        hidden = torch.zeros(self.geometry.canvas_length, self.geometry.hidden_size)
        wish = torch.tensor(self.wish(before))
        hidden[torch.arange(len(wish)), wish] = 30.0
        if self.wavering:
            soft = 0 if row.soft is None else hash(tuple(row.soft.argmax(-1).tolist()))
            seed = hash((before, tuple(row.ids.tolist()), soft)) % 2**31
            noise = torch.Generator().manual_seed(seed)
            hidden += self.wavering * torch.randn(hidden.shape, generator=noise)
        return hidden
