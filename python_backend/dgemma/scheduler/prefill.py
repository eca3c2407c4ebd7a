"""Prompts ride along with canvases: which requests take part in the next pass.

Knows that an encoded chunk is one row of a pass; knows nothing of what a chunk holds.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from dgemma.scheduler.line import Queue
from dgemma.scheduler.sequence import Sequence


def aboard(running: Ordered[Sequence], queue: Queue[Sequence], chunks: int) -> list[Sequence]:
    """Everybody with a canvas to denoise, and at most `chunks` with a prompt to encode.

    So a long prompt makes no pass longer than by its share of those rows, and it is the canvases'
    neighbour for as many passes as it has chunks. Of several prompts those go first whose tenants
    have had least, then the one that has its slot longest.
    """
    waiting = [sequence for sequence in running if sequence.prefill]
    if len(waiting) <= chunks:
        return list(running)
    held = set(sorted(waiting, key=queue.standing)[chunks:])
    return [sequence for sequence in running if sequence not in held]
