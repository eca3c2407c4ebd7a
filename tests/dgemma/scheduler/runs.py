"""Requests through assembled parts, and what came of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.assemble import Parts
from dgemma.request import Request
from dgemma.scheduler.events import Block, Event, Finished


@dataclass(frozen=True)
class Heard:
    """Equal for two runs of a request only if every bit of its hidden states was.

    Entropies depend on all of them.
    """

    ids: tuple[int, ...]
    mean_entropy: tuple[float, ...]
    cached_tokens: int = 0


def play(parts: Parts, requests: Sequence[tuple[int, Request]]) -> tuple[dict[str, Heard], int]:
    """Run requests that come before given passes; what each got, and chunks encoded again."""
    events: dict[str, list[Event]] = {}
    scheduler, step = parts.scheduler, 0
    waiting = sorted(requests, key=lambda each: each[0])
    while waiting or scheduler.busy:
        while waiting and waiting[0][0] <= step:
            _, each = waiting.pop(0)
            events[each.id] = []
            scheduler.submit(each, events[each.id].append)
        scheduler.step()
        step += 1
    length = scheduler.engine.geometry.canvas_length
    heard: dict[str, Heard] = {}
    again = 0
    for _, each in requests:
        last = events[each.id][-1]
        assert isinstance(last, Finished) and last.error is None
        usage = last.usage
        ids = [t for e in events[each.id] if isinstance(e, Block) for t in e.delta.token_ids]
        heard[each.id] = Heard(tuple(ids), usage.mean_entropy, usage.cached_tokens)
        again += usage.prefill_chunks - -(-len(each.prompt) // length)
    return heard, again
