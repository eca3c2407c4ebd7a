"""Rows that drive an engine the way the scheduler does, for tests that compare hidden states.

Shapes: L row length, D hidden size, T tokens of a text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.engine.base import Engine, Row


def padded(ids: Tensor, length: int, filler: int = 7) -> Tensor:
    """`ids` behind which any token stands: what it is must not matter."""
    return torch.cat([ids, ids.new_full((length - len(ids),), filler)])


def encode_rows(engine: Engine, ids: Tensor, slot: int, start: int = 0) -> list[Row]:
    """Rows that encode ids `[T]`, whole ones and a padded last one."""
    length = engine.geometry.canvas_length
    parts = ids.split(length)
    return [
        Row(padded(part, length), slot, start + i * length, len(part), denoise=False)
        for i, part in enumerate(parts)
        if len(part)
    ]


def prefill(engine: Engine, ids: Tensor, slot: int, start: int = 0) -> Tensor:
    """Hidden states `[T, D]` of ids `[T]`, one row a pass."""
    outputs = [
        engine.forward([row])[0, : row.valid].clone()
        for row in encode_rows(engine, ids, slot, start)
    ]
    return torch.cat(outputs)


def denoise_row(canvas: Tensor, slot: int, start: int, soft: Tensor | None = None) -> Row:
    return Row(canvas, slot, start, len(canvas), denoise=True, soft=soft)


def soft_embedding(engine: Engine, logits: Tensor) -> Tensor:
    """Expected token embedding `[L, D]` under logits `[L, V]`."""
    mixed: Tensor = torch.softmax(logits, -1) @ engine.embedding()
    return mixed * engine.geometry.hidden_size**0.5


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to what two orders of fp32 arithmetic may differ by."""
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-4)
