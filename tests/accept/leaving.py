"""A request that is cancelled, in whatever phase, is in no further pass; who waited is in the next.

Knows the phases of a request by the rows of its passes; the service and the engine are real.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from threading import Event as Flag

from torch import Tensor

from dgemma.assemble import Parts
from dgemma.engine.base import Row
from dgemma.request import RawRequest, Request
from dgemma.scheduler.events import Event, Finished
from dgemma.scheduler.scheduler import Scheduler
from dgemma.scheduler.tenancy import Tenant
from dgemma.service import Service
from tests.accept.main_job import Line
from tests.accept.mixes import Seam
from tests.accept.same_answers import opened
from tests.identity import any_text

SLOTS, PATIENCE_S = 2, 60.0
GONE, STAYS, WAITS = "gone", "stays", "waits"


class Phase(Enum):
    """What a request is doing when its cancellation comes."""

    WAITING = "waits for a slot"
    PREFILL = "a chunk of the prompt"
    FIRST_STEP = "last chunk and first step"
    DENOISE = "a denoise step"
    COMMIT = "commit and next canvas"
    MADE_ROOM = "waits again, pre-empted"


class Watch(Seam):
    """Tells in which phase a request is while its pass runs, and which requests each pass had."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.scheduler.engine, SLOTS)
        tail, answers = parts.scheduler.tail, parts.scheduler.answer_factory
        self.scheduler = Scheduler(self, tail, answers)
        self.during: Callable[[Phase | None], None] = lambda phase: None
        self.passes: list[set[str]] = []

    def forward(self, rows: Sequence[Row]) -> Tensor:
        scheduler = self.scheduler
        slots = {row.slot for row in rows}
        self.passes.append({s.request.id for s in scheduler.running if s.slot in slots})
        hidden = super().forward(rows)
        self.during(self._phase(rows))
        return hidden

    def _phase(self, rows: Sequence[Row]) -> Phase | None:
        sequence = self.scheduler.open.get(GONE)
        if sequence is None:
            return None
        if sequence.slot is None:
            return Phase.MADE_ROOM if sequence.committed else Phase.WAITING
        mine = [row.denoise for row in rows if row.slot == sequence.slot]
        if mine == [True]:
            return Phase.DENOISE
        if mine == [False, True]:
            return Phase.COMMIT if sequence.committed else Phase.FIRST_STEP
        return Phase.PREFILL


@dataclass(frozen=True)
class Left:
    """What happened when one request was cancelled in a phase."""

    cancelled: bool  # it had one last event, and that said so
    passes_after: int  # that it was in after the one that ran when it was cancelled
    waiter_after: int  # passes until the waiter had its slot; 1 is the next


def leave(parts: Parts, phase: Phase, rng: random.Random) -> Left:
    """Cancel a request the first or second time that it is in a phase."""
    watch = Watch(parts)
    service = Service(parts.parser, watch.scheduler, lambda ids, states: ("", []))
    heard: dict[str, list[Event]] = {GONE: [], STAYS: [], WAITS: []}
    ended, at, countdown = Flag(), 0, rng.choice([1, 2])
    if phase is Phase.FIRST_STEP:
        countdown = 1

    def submit(request: Request) -> None:
        service.submit(request, partial(sink, request.id))

    def during(now: Phase | None) -> None:
        nonlocal at, countdown
        if len(watch.passes) == 1:
            submit(late)
        if now is phase and countdown:
            countdown -= 1
            if not countdown:
                at = len(watch.passes)
                service.cancel(GONE)

    def sink(name: str, event: Event) -> None:
        heard[name].append(event)
        if isinstance(event, Finished) and all(
            events and isinstance(events[-1], Finished) for events in heard.values()
        ):
            ended.set()

    watch.during = during
    *early, late = _cast(parts, phase, rng)
    for request in early:
        submit(request)
    assert ended.wait(PATIENCE_S), f"{phase}: {heard}"
    service.close()
    assert at, f"never in this phase: {phase.value}"
    finals = [event for event in heard[GONE] if isinstance(event, Finished)]
    after = watch.passes[at:]
    waiter = next((i for i, names in enumerate(after, 1) if WAITS in names), len(after) + 1)
    return Left(
        len(finals) == 1 and finals[0].finish_reason == "cancelled",
        sum(GONE in names for names in after),
        1 if phase in (Phase.WAITING, Phase.MADE_ROOM) else waiter,
    )


def _cast(parts: Parts, phase: Phase, rng: random.Random) -> Iterator[Request]:
    """Of the three, the last comes when the first pass runs and all slots are taken."""
    length = parts.scheduler.engine.geometry.canvas_length
    a, b = Tenant("a"), Tenant("b")

    def ask(name: str, tenant: Tenant, chunks: int, canvases: int, steps: int) -> Request:
        sampling = {
            "max_new_tokens": canvases * length,
            "max_denoising_steps": steps,
            "confidence_threshold": 0.0,
            "ignore_eos": True,
            "seed": rng.randrange(2**63),
        }
        text = any_text(rng, chunks * length - rng.randint(1, length // 2))
        raw = RawRequest(text.encode(), sampling_parameters=json.dumps(sampling).encode())
        return replace(parts.parser.parse(raw, name), tenant=tenant)

    if phase is Phase.WAITING:
        yield ask(STAYS, a, 1, 2, 8)
        yield ask(WAITS, a, 1, 2, 8)
        yield ask(GONE, a, 1, 1, 4)
    elif phase is Phase.MADE_ROOM:  # its tenant has had most when the others come
        yield ask(GONE, a, 1, 6, 4)
        yield ask(STAYS, a, 1, 3, 24)
        yield ask(WAITS, b, 1, 6, 8)
    else:
        yield ask(GONE, a, 4, 3, 4)
        yield ask(STAYS, b, 1, 3, 24)
        yield ask(WAITS, b, 1, 1, 2)


def leaving(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Cancellations from a service's clients, while a pass runs."""
    parts = opened(engine, checkpoint)
    rng = random.Random(3)
    for phase in Phase:
        left = [leave(parts, phase, rng) for _ in range(rounds)]
        good = sum(each == Left(True, 0, 1) for each in left)
        yield Line(
            f"cancelled: {phase.value}",
            f"gone from the next pass in {good} of {rounds}",
            "all, and the waiter is in it",
            good == rounds,
        )
