"""Requests through assembled parts, and every hidden state that decided on their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgemma.assemble import Parts
from dgemma.request import Request
from dgemma.sampling import Sampling
from dgemma.scheduler.events import Block, Event, Finished
from dgemma.tail.tail import Canvas, Tail

Moment = tuple[int, int, int]  # seed of the request, block, step


@dataclass(frozen=True)
class WatchingTail(Tail):
    """Keeps the hidden states of every row that a tail sees; requests differ by their seeds."""

    watched: Tail = field(kw_only=True)
    seen: dict[Moment, Tensor] = field(kw_only=True)

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        for row, (canvas, sampling) in zip(hidden, rows, strict=True):
            self.seen[sampling.seed, canvas.block, canvas.step] = row.clone()
        self.watched.step(hidden, rows)


@dataclass
class Heard:
    """What came of one request."""

    ids: tuple[int, ...]
    hidden: dict[Moment, Tensor]
    prefill_chunks: int
    cached_tokens: int

    def has_the_bits_of(self, other: Heard) -> bool:
        return self.ids == other.ids and self.distance(other) == 0.0

    def distance(self, other: Heard) -> float:
        """The largest difference of hidden states, over all steps of all canvases."""
        assert self.hidden.keys() == other.hidden.keys()
        pairs = [(self.hidden[moment], other.hidden[moment]) for moment in self.hidden]
        return max(float((a - b).abs().max()) for a, b in pairs)


def play(parts: Parts, requests: Sequence[tuple[int, Request]]) -> dict[str, Heard]:
    """Run requests that come before given passes."""
    scheduler, step = parts.scheduler, 0
    tail, seen = scheduler.tail, dict[Moment, Tensor]()
    scheduler.tail = WatchingTail(tail.head, tail.draws, watched=tail, seen=seen)
    events: dict[str, list[Event]] = {}
    waiting = sorted(requests, key=lambda each: each[0])
    while waiting or scheduler.busy:
        while waiting and waiting[0][0] <= step:
            _, each = waiting.pop(0)
            events[each.id] = []
            scheduler.submit(each, events[each.id].append)
        scheduler.step()
        step += 1
    return {each.id: _heard(each, events[each.id], seen) for _, each in requests}


def _heard(request: Request, events: Sequence[Event], seen: dict[Moment, Tensor]) -> Heard:
    last = events[-1]
    assert isinstance(last, Finished) and last.error is None
    ids = [t for event in events if isinstance(event, Block) for t in event.delta.token_ids]
    hidden = {moment: row for moment, row in seen.items() if moment[0] == request.sampling.seed}
    assert len(hidden) == sum(last.usage.denoising_steps)
    assert all(torch.isfinite(row).all() for row in hidden.values())
    return Heard(tuple(ids), hidden, last.usage.prefill_chunks, last.usage.cached_tokens)
