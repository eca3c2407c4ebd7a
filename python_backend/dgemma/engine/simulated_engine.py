"""The `simulated` engine: passes take the time that they would on a platform, and compute nothing.

Knows what decides how long a pass takes (rows, contexts, what is denoised); how long that is, is
`dgemma.roofline`'s. Its tail is `dgemma.simulated.tail`, whose time is part of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgemma.engine.base import NO_PARTNER, Capacity, Row, Snapshot
from dgemma.engine.batch import check
from dgemma.errors import EngineFailure
from dgemma.geometry import Geometry
from dgemma.roofline.platform import Platform
from dgemma.simulated.device import SimulatedDevice


class SimulatedEngine:
    """An Engine whose slots hold nothing but how many tokens were encoded."""

    reruns = 0

    def __init__(self, platform: Platform, capacity: Capacity, device: SimulatedDevice) -> None:
        self.platform, self.capacity, self.device = platform, capacity, device
        self.geometry: Geometry = platform.model.geometry
        self._held = [0] * capacity.slots
        # By rows of a pass: the host has better things to do between passes than to make one.
        self._nothing = [
            torch.empty(rows, 0, self.geometry.hidden_size) for rows in range(capacity.rows + 1)
        ]

    def embedding(self) -> Tensor:
        """Of no tokens: there are no weights."""
        return torch.empty(0, self.geometry.hidden_size)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states of no positions, when the pass is over."""

        def seconds() -> float:
            check(rows, self.geometry, self.capacity)
            contexts = [self._context(rows, row) for row in rows]
            return self.platform.pass_s(contexts, sum(row.denoise for row in rows))

        self.device.run(seconds)
        for row in rows:
            if not row.denoise:
                self._held[row.slot] = row.end
        return self._nothing[len(rows)]

    def meanwhile(self, call: Callable[[], object]) -> None:
        self.device.meanwhile(call)

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        if stop > self._held[slot]:
            raise EngineFailure(f"slot {slot} holds {self._held[slot]} tokens, asked up to {stop}")
        nbytes = self._nbytes(start, stop)
        self.device.run(lambda: self.platform.copy_s(nbytes))
        return Snapshot(start, stop, (), nbytes)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        if snapshot.start not in (0, self._held[slot]):
            raise EngineFailure(f"slot {slot} holds {self._held[slot]} tokens: {snapshot}")
        self.device.run(lambda: self.platform.copy_s(snapshot.nbytes))
        self._held[slot] = snapshot.stop

    def _context(self, rows: Sequence[Row], row: Row) -> int:
        """Tokens before a row; the pass is refused where its slot does not hold them."""
        first = row
        while first.partner != NO_PARTNER:
            first = rows[first.partner]
        if first.start and first.start != self._held[row.slot]:
            raise EngineFailure(
                f"slot {row.slot} holds {self._held[row.slot]} tokens, a row reads {first.start}"
            )
        return row.start

    def _nbytes(self, start: int, stop: int) -> int:
        """Of what sliding layers keep, at most a window."""
        ring = min(stop - start, self.geometry.sliding_window)
        position = self.platform.model.position
        return position.sliding * ring + position.full * (stop - start)
