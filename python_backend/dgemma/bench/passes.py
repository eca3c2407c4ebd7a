"""Passes of every kind, of random tokens: what an engine is compared and timed with.

Knows what kinds there are; knows nothing of engines. Seeded, so that every machine runs the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.geometry import Geometry


@dataclass(frozen=True)
class Pass:
    """Rows and what they are; passes are run in order, for later ones read what earlier kept."""

    kind: str
    rows: list[Row]

    @property
    def context(self) -> int:
        return max(row.start for row in self.rows)


class _Tokens:
    def __init__(self, geometry: Geometry, seed: int) -> None:
        self.geometry, self.generator = geometry, torch.Generator().manual_seed(seed)

    def ids(self) -> Tensor:
        g = self.geometry
        return torch.randint(0, g.vocab_size, (g.canvas_length,), generator=self.generator)

    def soft(self) -> Tensor:
        """As large as the expected embeddings of uncertain tokens: about one an element."""
        g = self.geometry
        return torch.randn(g.canvas_length, g.hidden_size, generator=self.generator)


def passes(geometry: Geometry, capacity: Capacity, seed: int = 0) -> Iterator[Pass]:
    """Every kind in one row, together in one pass, and in as many rows as there can be."""
    make, length = _Tokens(geometry, seed), geometry.canvas_length
    ids, soft = make.ids, make.soft
    short = max(1, length // 3)
    yield Pass("prefill", [Row(ids(), 0, 0, length, False)])
    yield Pass("prefill, part of a row", [Row(ids(), 0, length, short, False)])
    at = length + short
    yield Pass("denoise, first step", [Row(ids(), 0, at, length, True)])
    yield Pass("denoise, later step", [Row(ids(), 0, at, length, True, soft())])
    if capacity.rows >= 2:
        commit = Row(ids(), 0, at, length, False)
        at = commit.end
        yield Pass("commit with denoise", [commit, Row(ids(), 0, at, length, True, None, 0)])
    held = dict.fromkeys(range(capacity.slots), 0) | {0: at}
    while held[0] + 2 * length <= capacity.context and held[0] < 2 * geometry.sliding_window:
        yield Pass("prefill, long context", [Row(ids(), 0, held[0], length, False)])
        held[0] += length
    yield Pass("denoise, long context", [Row(ids(), 0, held[0], length, True, soft())])
    if capacity.slots > 1:
        yield _mixture(make, capacity, held)
        everyone = [Row(ids(), slot, at, length, True, soft()) for slot, at in held.items()]
        yield Pass("denoise, every slot", everyone[: capacity.rows])


def _mixture(make: _Tokens, capacity: Capacity, held: dict[int, int]) -> Pass:
    """Prefill, denoise and a commit with denoise in turn, and what each slot holds then."""
    length = make.geometry.canvas_length
    rows: list[Row] = []
    for slot, at in held.items():
        denoise = Row(make.ids(), slot, at, length, True, make.soft())
        encode = Row(make.ids(), slot, at, length, False)
        behind = denoise._replace(start=encode.end, soft=None, partner=len(rows))
        what = 0 if at + 2 * length > capacity.context else slot % 3
        new = ([denoise], [encode, behind], [encode])[what]
        if len(rows) + len(new) > capacity.rows:
            break
        rows += new
        held[slot] = encode.end if what else at
    return Pass("mixture", rows)


def timed(geometry: Geometry, capacity: Capacity, rows: int, context: int) -> list[Row]:
    """Denoise rows behind `context` tokens, whatever the pools hold there."""
    make = _Tokens(geometry, rows + context)
    length = geometry.canvas_length
    return [
        Row(make.ids(), i % capacity.slots, context, length, True, make.soft()) for i in range(rows)
    ]
