"""How much an engine is compiled for and must hold: what sizes, shapes and plans agree on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Envelope:
    """How much an engine must be able to hold at once."""

    slots: int
    rows: int  # of a pass
    context: int  # tokens of a slot
    capacity: int | None = None  # tokens that one expert may get; None: all of the pass

    @classmethod
    def of_slots(cls, slots: int, context: int, capacity: int | None = None) -> Envelope:
        """Two rows a slot: the commit of one canvas and the first step of the next."""
        return cls(slots, 2 * slots, context, capacity)
