"""A scheduler over an engine and a tail that compute nothing, in virtual time.

The engine holds passes to what its slots have encoded; the tail lets a canvas converge after a
number of steps that its request's seed draws. A pass costs microseconds, so that thousands of
requests of many tenants can be run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dgemma.answer import Delta
from dgemma.engine.base import NO_PARTNER, Capacity, Engine, Row, Snapshot
from dgemma.engine.batch import check
from dgemma.errors import EngineFailure
from dgemma.request import Request, StreamMode
from dgemma.sampling import Sampling
from dgemma.scheduler.events import Event, Finished, Usage
from dgemma.scheduler.options import Options
from dgemma.scheduler.pace import Pace
from dgemma.scheduler.scheduler import Scheduler
from dgemma.scheduler.tenancy import EVERYONE, Tenant
from dgemma.tail.tail import Canvas, Denoiser
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.scheduler.requests import SAMPLING
from tests.dgemma.scheduler.virtual import PASS_S, ROW_S, Time

L = 8
GEOMETRY = geometry_of(canvas_length=L, sliding_window=2 * L)
_SLATE = torch.zeros(L, dtype=torch.int64)


class DiceEngine:
    """Knows how many tokens each slot holds. `fails` of a thousand passes do."""

    reruns = 0

    def __init__(self, time: Time, slots: int, fails: int = 0, context: int = 4096) -> None:
        self.geometry, self.capacity = GEOMETRY, Capacity(slots, context, 2 * slots)
        self.time, self.fails, self.dice = time, fails, random.Random(7)
        self.held = [0] * slots
        self.passes = 0

    def embedding(self) -> Tensor:
        raise NotImplementedError("no tail reads it here")

    def forward(self, rows: Sequence[Row]) -> Tensor:
        check(rows, self.geometry, self.capacity)
        for row in rows:
            context = row.start if row.partner == NO_PARTNER else rows[row.partner].start
            if context and self.held[row.slot] != context:
                raise AssertionError(f"slot {row.slot} holds {self.held[row.slot]}: {row}")
        if self.dice.random() * 1000 < self.fails:
            raise EngineFailure("the dice said so")
        self.passes += 1
        self.time.now += PASS_S + ROW_S * len(rows)
        for row in rows:
            if not row.denoise:
                self.held[row.slot] = row.end
        return _SLATE.expand(len(rows), L)

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        assert stop <= self.held[slot]
        return Snapshot(start, stop, (), stop - start)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        assert snapshot.start in (0, self.held[slot])
        self.held[slot] = snapshot.stop


class DiceTail:
    """Two kinds of canvases: most converge early, a fifth never does."""

    def begin(self, block: int, sampling: Sampling, pinned: Tensor | None) -> Canvas:
        return Canvas(block, _SLATE, pinned)

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        for canvas, sampling in rows:
            canvas.step += 1
            canvas.argmax = _SLATE
            canvas.converged = canvas.step >= steps_of(sampling, canvas.block)


def steps_of(sampling: Sampling, block: int) -> int:
    dice = random.Random(sampling.seed * 1000 + block)
    most = sampling.max_denoising_steps
    return most if dice.random() < 0.2 else max(1, round(dice.gauss(most / 2, most / 10)))


class Counted:
    """A transcript that ends at `max_new_tokens`, and before where the seed says so."""

    def __init__(self, request: Request) -> None:
        self.left = request.sampling.max_new_tokens
        self.stops = request.sampling.seed % 5 == 0
        self.completion_tokens = 0

    def push(self, block: Sequence[int]) -> Delta:
        taken = min(len(block), self.left)
        if self.stops and self.completion_tokens:
            taken = min(taken, 3)
        self.left -= taken
        self.completion_tokens += taken
        ended = "stop" if taken == 3 else None if self.left else "length"
        return Delta("", tuple(block[:taken]), ended)


def asked(name: str, tenant: Tenant = EVERYONE, **more: Any) -> Request:
    """By default an answer of two canvases with up to 12 steps each."""
    priority, deadline_s = more.pop("priority", None), more.pop("deadline_s", None)
    prompt = more.pop("prompt", (1,) * 5)
    values = {"max_new_tokens": 2 * L, "max_denoising_steps": 12, "seed": 1, **more}
    sampling = Sampling(**{**vars(SAMPLING), **values})
    return Request(
        name,
        prompt,
        sampling,
        StreamMode.BLOCK,
        None,
        tenant,
        tenant.name.encode(),
        priority=priority,
        deadline_s=deadline_s,
    )


@dataclass
class Stage:
    """A scheduler in virtual time, and what came of each request and each tenant."""

    slots: int = 4
    options: Options = field(default_factory=Options)
    fails: int = 0
    ends: dict[str, list[Finished]] = field(default_factory=dict)
    _served: Counter[str] = field(default_factory=Counter)  # rows of ended ones, by tenant
    ended: list[str] = field(default_factory=list)  # since this was last emptied

    def __post_init__(self) -> None:
        self.time: Any = Time()
        engine, tail = self.furnish()
        self.scheduler = Scheduler(engine, tail, Counted, self.options, Pace(self.time))

    @property
    def served(self) -> Counter[str]:
        """Rows by tenant, of ended requests and of open ones."""
        rows = Counter(self._served)
        for sequence in self.scheduler.open.values():
            rows[sequence.tenant.name] += sequence.rows_had
        return rows

    def furnish(self) -> tuple[Engine, Denoiser]:
        self.engine: Any = DiceEngine(self.time, self.slots, self.fails)
        return self.engine, DiceTail()

    def submit(self, request: Request) -> None:
        self.ends[request.id] = []
        self.scheduler.submit(request, partial(self._hear, request))

    def usage(self, name: str) -> Usage:
        return self.ends[name][0].usage

    def _hear(self, request: Request, event: Event) -> None:
        if isinstance(event, Finished):
            self.ends[request.id].append(event)
            self.ended.append(request.id)
            usage = event.usage
            self._served[request.tenant.name] += usage.service_units
            if event.finish_reason in ("stop", "length"):
                assert usage.passes <= sum(usage.denoising_steps) + usage.prefill_chunks


@dataclass
class Client:
    """Keeps `streams` requests of one tenant open, each begun when the one before has ended."""

    tenant: Tenant
    streams: int
    make: Callable[[str, Tenant, int], Request]
    waits_s: list[float] = field(default_factory=list)  # from submission to the first slot
    takes_s: list[float] = field(default_factory=list)  # from submission to the end
    number: int = 0


def keep_busy(stage: Stage, clients: Sequence[Client], passes: int) -> None:
    """Run the clients for so many passes, whatever is under way at the end."""
    owner: dict[str, Client] = {}

    def begin(client: Client) -> None:
        name = f"{client.tenant.name}-{client.number}"
        client.number += 1
        owner[name] = client
        stage.submit(client.make(name, client.tenant, client.number))

    for client in clients:
        for _ in range(client.streams):
            begin(client)
    for _ in range(passes):
        stage.scheduler.step()
        for name in stage.ended:
            client, usage = owner.pop(name), stage.usage(name)
            client.waits_s.append(usage.queue_ms / 1e3)
            client.takes_s.append(usage.total_ms / 1e3)
            begin(client)
        stage.ended.clear()
