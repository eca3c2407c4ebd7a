"""The seam between the scheduler and whatever computes a pass.

Knows what a pass is made of; knows neither requests nor how an engine computes.
Shapes: R rows of a pass, L row length (the canvas), D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dgemma.geometry import Geometry

NO_PARTNER = -1


class Row(NamedTuple):
    """L tokens of one slot in one mode; all positions are absolute."""

    ids: Tensor  # int64 [L], padded beyond `valid`
    slot: int
    start: int
    valid: int
    denoise: bool
    soft: Tensor | None = None  # [L, D], None: zeros (encode rows, a canvas's first step)
    partner: int = NO_PARTNER  # row of the same pass whose tokens stand right before this one

    @property
    def end(self) -> int:
        return self.start + self.valid


@dataclass(frozen=True)
class Capacity:
    """What one engine can hold."""

    slots: int
    context: int  # tokens a slot can hold, prompt and answer together
    rows: int  # rows a pass may have


@dataclass(frozen=True)
class Snapshot:
    """K/V of positions `start .. stop` of a slot, copied; `parts` are their engine's business."""

    start: int
    stop: int
    parts: Sequence[Any]
    nbytes: int


class PassRunner(Protocol):
    """Runs passes and holds the KV of their slots. One thread uses it."""

    geometry: Geometry
    capacity: Capacity

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Last hidden states `[R, L, D]`, on the engine's device; valid until the next call.

        K/V of encode rows are written to their slots' pools when the pass is complete, so a slot
        holds positions `0 .. end` of its last encode row. Raises EngineFailure; no state has
        changed then.
        """
        ...

    def embedding(self) -> Tensor:
        """The embedding, which is also the LM head, `[V, D]`, on the engine's device."""
        ...


class Engine(PassRunner, Protocol):
    """What a service needs: its KV can be copied from slot to slot besides."""

    reruns: int  # passes that were run again because an expert had overflowed

    def meanwhile(self, call: Callable[[], object]) -> None:
        """Have `call` called once with the next pass, when that keeps the host least busy."""
        ...

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        """A copy of encoded positions; of what sliding layers keep, the last W of them.

        The slot holds at most W tokens from `start` on, or `stop` is its end.
        """
        ...

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Write a copy to its positions in any slot, as if they had been encoded there.

        Of one context, the copies are restored in order and without a gap from position 0.
        """
        ...
