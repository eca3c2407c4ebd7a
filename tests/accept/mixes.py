"""Random mixes of requests on one engine, and what becomes of each of them.

Knows arrivals, cancellations, chats that go on and how to run a request alone; what is promised of
it is `tests.accept.same_answers`'s.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from dgemma.assemble import Parts
from dgemma.engine.base import NO_PARTNER, Engine, Row, Snapshot
from dgemma.request import RawRequest, Request
from dgemma.scheduler.events import Block, Event, Finished, Usage
from dgemma.scheduler.options import Options
from dgemma.scheduler.scheduler import Scheduler
from dgemma.tail.draws import Moment
from dgemma.tail.tail import Tail
from dgemma_build.demo.vocabulary import IMAGE, IMAGE_END, IMAGE_START, to_ids
from tests.accept.decisions import Decision, Decisions, Forced, RecordingTail
from tests.identity import TENANTS, any_request, any_text

MOST = 16  # requests of a mix
_IMAGE = (IMAGE_START, IMAGE, IMAGE_END)


class Seam:
    """An engine that shows some of its slots, and counts what is asked of it."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self.engine, self.geometry = engine, engine.geometry
        self.capacity = replace(engine.capacity, slots=slots, rows=2 * slots)
        self.embedding = engine.embedding
        self.partners = 0  # rows behind a partner

    def forward(self, rows: Sequence[Row]) -> Tensor:
        self.partners += sum(row.partner != NO_PARTNER for row in rows)
        return self.engine.forward(rows)

    def snapshot(self, slot: int, start: int, stop: int) -> Snapshot:
        return self.engine.snapshot(slot, start, stop)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        self.engine.restore(slot, snapshot)


class OneByOne(Seam):
    """Runs every row in a pass of its own, after what it stands on: nothing is fused."""

    def forward(self, rows: Sequence[Row]) -> Tensor:
        alone = [self.engine.forward([row._replace(partner=NO_PARTNER)])[0].clone() for row in rows]
        return torch.stack(alone)


@dataclass(frozen=True)
class Asked:
    """One request of a mix: the pass before which it comes, and when it goes."""

    request: Request
    before_pass: int = 0
    cancelled_before: int | None = None


@dataclass(frozen=True)
class Heard:
    """What came of one request."""

    finish_reason: str
    ids: tuple[int, ...]
    usage: Usage
    decisions: Mapping[Moment, Decision] = field(repr=False)

    @property
    def within_its_passes(self) -> bool:
        """Not more passes than denoise steps and chunks encoded; of one that was not cancelled."""
        usage = self.usage
        return (
            self.finish_reason == "cancelled"
            or usage.passes <= sum(usage.denoising_steps) + usage.prefill_chunks
        )


@dataclass
class Stage:
    """A scheduler of its own over an engine that others use too, in their turns."""

    parts: Parts
    seam: Seam
    tail: Tail
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        factory = self.parts.scheduler.answer_factory
        self.scheduler = Scheduler(self.seam, self.tail, factory, self.options)

    def run(self, crowd: Sequence[Asked], along: Forced | None = None) -> list[Heard]:
        """All of them to their ends; along the decisions of another run where such are given."""
        scheduler, seen, heard = self.scheduler, Decisions(), dict[str, list[Event]]()
        scheduler.tail = RecordingTail.around(self.tail, seen, along or {})
        last, step = max(asked.before_pass for asked in crowd), 0
        while scheduler.busy or step <= last:
            for asked in crowd:
                name = asked.request.id
                if asked.before_pass == step:
                    scheduler.submit(asked.request, heard.setdefault(name, []).append)
                if asked.cancelled_before == step:
                    scheduler.cancel(name)
            scheduler.step()
            step += 1
        return [_heard(asked.request, heard[asked.request.id], seen) for asked in crowd]


def _heard(request: Request, events: Sequence[Event], seen: Decisions) -> Heard:
    last = events[-1]
    assert isinstance(last, Finished), "every request ends"
    if last.error is not None:
        raise last.error
    ids = tuple(t for event in events if isinstance(event, Block) for t in event.delta.token_ids)
    seed = request.sampling.seed
    mine = {moment: decision for moment, decision in seen.items() if moment.seed == seed}
    return Heard(last.finish_reason, ids, last.usage, mine)


def any_mix(rng: random.Random, parts: Parts, name: str) -> list[Asked]:
    """Up to sixteen requests of three tenants."""
    length = parts.scheduler.engine.geometry.canvas_length
    crowd = []
    for index in range(rng.randint(2, MOST)):
        request = parts.parser.parse(any_request(rng, length), f"{name}/{index}")
        crowd.append(arriving(rng, replace(request, tenant=rng.choice(TENANTS))))
    return crowd


def arriving(rng: random.Random, request: Request, after: int = 0) -> Asked:
    before = after + rng.randrange(16)
    return Asked(request, before, before + rng.randrange(1, 16) if rng.random() < 0.15 else None)


@dataclass(frozen=True)
class Told:
    """A request of a chat, what it heard alone, and the one whose answer it goes on from."""

    asked: Asked
    heard: Heard
    before: Told | None

    def shifted(self, cached_tokens: int, length: int) -> bool:
        """Whether so much from the cache holds blocks that were encoded in other chunks."""
        own = len(self.before.asked.request.prompt) if self.before else cached_tokens
        return cached_tokens > own // length * length and own % length > 0


@dataclass
class Chats:
    """Draws requests whose prompts begin like others: a common beginning, or a chat that goes on.

    `alone` says what each hears, which the next may go on from.
    """

    rng: random.Random
    parts: Parts
    name: str
    alone: Callable[[Request], Heard]
    told: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.length = self.parts.scheduler.engine.geometry.canvas_length
        self.beginnings = [self._text(4 * self.length) for _ in range(2)]

    def tell(self) -> None:
        rng, before = self.rng, None
        tenant = rng.choice(TENANTS)
        prompt = self._text(rng.randint(1, 2 * self.length))
        if self.told and rng.random() < 0.6:
            before = rng.choice(self.told)
            answer = takewhile(lambda token: token not in _IMAGE, before.heard.ids)  # refused
            prompt = [*before.asked.request.prompt, *answer, *prompt[: self.length]]
            tenant = before.asked.request.tenant if rng.random() < 0.8 else tenant
        elif rng.random() < 0.7:
            prompt = rng.choice(self.beginnings)[: rng.randint(1, 4 * self.length)] + prompt
        settings: dict[str, Any] = {
            "seed": rng.randrange(2**63),
            "max_new_tokens": rng.randint(1, 3 * self.length),
            "max_denoising_steps": rng.randint(1, 10),
            "ignore_eos": rng.random() < 0.7,
            "return_token_ids": True,
            "entropy_bound": rng.choice([0.1, 1.0, 20.0]),
            "confidence_threshold": rng.choice([0.0, 0.005, 0.5]),
        }
        room = self.parts.scheduler.engine.capacity.context - settings["max_new_tokens"]
        raw = RawRequest(input_ids=prompt[:room], sampling_parameters=json.dumps(settings).encode())
        request = self.parts.parser.parse(raw, f"{self.name}/{len(self.told)}")
        request = replace(request, tenant=tenant, cache_salt=tenant.name.encode())
        # Most chats go on when the answer before has been given, some earlier.
        after = before.asked.before_pass + rng.randrange(40) if before else 0
        self.told.append(Told(arriving(rng, request, after), self.alone(request), before))

    def _text(self, size: int) -> list[int]:
        return to_ids(any_text(self.rng, size))
