"""Prompts ride along with canvases: what each request may encode in the next pass.

Knows that an encoded chunk is one row of a pass; knows nothing of what a chunk holds.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from dgemma.scheduler.line import Queue
from dgemma.scheduler.sequence import Sequence


def aboard(
    running: Ordered[Sequence], queue: Queue[Sequence], budget: int, most: int
) -> list[tuple[Sequence, int]]:
    """Everybody that takes part in a pass, in the order of `running`, with chunks to encode.

    Canvases always do. Of the prompts' chunks at most `budget` ride along: so a long prompt makes
    no pass longer than by its share of those rows. First come the prompts whose tenants have had
    least, then those that have their slot longest. What is left of the budget when each has one
    chunk goes to those that can use up to `most`.
    """
    prompts = [sequence for sequence in running if sequence.prefill]
    if not prompts:  # as in most passes
        return [(sequence, 1) for sequence in running]
    prompts.sort(key=queue.standing)
    chunks = dict.fromkeys(prompts[:budget], 1)
    left = budget - len(chunks)
    for sequence in list(chunks):
        more = max(0, min(left, most - 1, len(sequence.pending) - 2))
        chunks[sequence] += more
        left -= more
    return [
        (sequence, chunks.get(sequence, 1))
        for sequence in running
        if sequence in chunks or not sequence.prefill
    ]
