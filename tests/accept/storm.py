"""Thousands of requests, good, bad, late and abandoned: each has one end, and nothing is left.

Knows what may be sent and what a service holds; one storm is for a service over an engine that
computes nothing, the other for a real server, which is asked from outside.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dgemma.answer import Answer
from dgemma.assemble import Parts
from dgemma.engine.base import Row
from dgemma.engine.kv_pool import KVPool
from dgemma.errors import DgemmaError, EngineFailure
from dgemma.request import RawRequest, Request, RequestParser
from dgemma.scheduler.events import Event, Finished
from dgemma.scheduler.fair_queue import FairQueue
from dgemma.scheduler.options import Options
from dgemma.scheduler.scheduler import Scheduler
from dgemma.scheduler.tenancy import Limits, Tenant
from dgemma.service import Service
from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Tail
from dgemma.tenants.caller import Caller
from dgemma_build.demo.vocabulary import EOS, VOCAB_SIZE
from tests.accept.main_job import Line
from tests.dgemma.engine.fake_engine import FakeEngine, geometry_of
from tests.identity import any_text
from tests.tiny_checkpoint import DEFAULTS, byte_tokenizer

L = 8
SLOTS, QUEUED, CLIENTS, OPEN = 6, 40, 8, 12
CACHE = 40 * L * 8  # bytes of what the fake engine keeps
PATIENCE_S = 120.0
TENANTS = [
    Tenant("plain"),
    Tenant("heavy", 4.0, Limits(max_priority=3)),
    Tenant("narrow", 1.0, Limits(max_running=1, max_queued=5)),
    Tenant("metered", 2.0, Limits(tokens_per_minute=20_000)),
    Tenant("short", 0.5, Limits(max_context=20)),
]
BAD = [
    RawRequest(),
    RawRequest(b"a", b"[]"),
    RawRequest(b"\xff"),
    RawRequest(input_ids=[]),
    RawRequest(input_ids=[VOCAB_SIZE]),
    RawRequest(messages=b'[{"role": "user"}]'),
    RawRequest(b"a", sampling_parameters=b"{"),
    RawRequest(b"a", sampling_parameters=b'{"seed": -1}'),
    RawRequest(b"a", sampling_parameters=b'{"max_new_tokens": 100000}'),
    RawRequest(b"a", canvas_template=b"<|gap:0|>"),
    RawRequest(b"a", stream=b"all"),
]
progress = Console(stderr=True)


def any_settings(rng: random.Random, length: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "seed": rng.randrange(1000),
        "max_new_tokens": rng.randint(1, 4 * length),
        "max_denoising_steps": rng.randint(1, 12),
        "ignore_eos": rng.random() < 0.5,
    }
    if rng.random() < 0.3:
        settings["deadline_s"] = rng.choice([0.001, 0.05, 0.2, 1.0, 10.0])
    if rng.random() < 0.2:
        settings["priority"] = rng.choice([0, 1])
    return settings


class Failing(FakeEngine):
    """An engine some of whose passes fail, and that forgets what passes there were."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots, wavering=11.0, geometry=geometry_of(sliding_window=2 * L))
        self.dice = random.Random(7)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        self.passes.clear()
        if self.dice.random() < 0.003:
            raise EngineFailure("the dice said so")
        return super().forward(rows)


def cheap_parts() -> Parts:
    """The real parser, tail, scheduler and answers over an engine that computes nothing."""
    engine, tokenizer = Failing(SLOTS), byte_tokenizer()
    parser = RequestParser(
        DEFAULTS,
        tokenizer,
        vocab_size=VOCAB_SIZE,
        canvas_length=L,
        max_model_len=engine.capacity.context,
        image_token_ids=frozenset(),
    )
    tail = Tail(Head(engine.embedding(), 30.0), SeededDraws(L, VOCAB_SIZE))

    def answer(request: Request) -> Answer:
        return Answer(tokenizer, request.sampling, frozenset({EOS}))

    options = Options(max_queued=QUEUED, prefill_rows=3, prefix_cache_bytes=CACHE)
    return Parts(parser, Scheduler(engine, tail, answer, options))


@dataclass
class Mailbox:
    """What one request has heard."""

    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished):
            self.ended.set()

    @property
    def finals(self) -> int:
        return sum(isinstance(event, Finished) for event in self.events)

    @property
    def outcome(self) -> str:
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last.error.grpc_code if last.error else last.finish_reason


@dataclass
class Storm:
    """What has come of all requests so far; its methods are for many threads."""

    service: Service
    boxes: list[Mailbox] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def client(self, seed: int, requests: int, done: Progress, task: Any) -> None:
        """One client: some requests open at a time, of which it cancels whichever it likes."""
        rng, mine = random.Random(seed), list[tuple[str, Mailbox]]()
        for _ in range(requests):
            done.advance(task)
            box, name = Mailbox(), str(next(self.numbers))
            try:
                request = self._parsed(rng, name)
                self.boxes.append(box)
                self.service.submit(request, box)
            except DgemmaError as error:
                self.refused.append(error.grpc_code)
                continue
            mine.append((name, box))
            if rng.random() < 0.15:
                self.service.cancel(rng.choice(mine[-OPEN:])[0])  # it may have ended long ago
            while sum(not box.ended.is_set() for _, box in mine[-4 * OPEN :]) >= OPEN:
                next(box for _, box in mine if not box.ended.is_set()).ended.wait(PATIENCE_S)
            if rng.random() < 0.02:
                time.sleep(0.02)

    def _parsed(self, rng: random.Random, name: str) -> Request:
        if rng.random() < 0.1:
            return self.service.parse(rng.choice(BAD), name)
        text = rng.choice("abc") * rng.choice([1, 5, L, 3 * L, 3 * L + 1, 90])
        raw = RawRequest(
            (text + any_text(rng, 3)).encode(),
            sampling_parameters=json.dumps(any_settings(rng, L)).encode(),
        )
        tenant = rng.choice(TENANTS)
        return Caller(tenant, tenant.name.encode()).claim(self.service.parse(raw, name))


def in_process(engine: Path, checkpoint: Path, requests: int) -> Iterator[Line]:
    """Through the service, from several threads; neither engine nor checkpoint is needed."""
    logging.getLogger("dgemma.service").setLevel(logging.CRITICAL)  # some passes are to fail
    parts = cheap_parts()
    storm = Storm(Service(parts.parser, parts.scheduler, lambda ids, states: ("", [])))
    with Progress(console=progress, transient=True) as done:
        task = done.add_task("requests", total=requests)
        each = [requests // CLIENTS + (i < requests % CLIENTS) for i in range(CLIENTS)]
        threads = [
            threading.Thread(target=storm.client, args=(seed, count, done, task))
            for seed, count in enumerate(each)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    drained = storm.service.drain(PATIENCE_S)
    storm.service.close()  # and with it the pass that ended the last one
    left = dict(held(parts.scheduler))
    outcomes = Counter(box.outcome for box in storm.boxes if box.finals) + Counter(storm.refused)
    yield Line(
        f"{requests} requests through the service",
        ", ".join(f"{count} {name}" for name, count in outcomes.most_common()),
        "",
    )
    once = sum(box.finals == 1 and isinstance(box.events[-1], Finished) for box in storm.boxes)
    total = once + len(storm.refused)
    yield Line("  had one final answer", f"{total}", f"{requests}", total == requests)
    seen = ", ".join(f"{amount:g} {what}" for what, amount in left.items())
    yield Line("  left behind", seen, "nothing", drained and not any(left.values()))
    cache = parts.scheduler.cache
    assert cache is not None
    yield Line(
        "  kept for prompts that begin alike",
        f"{cache.nbytes} bytes",
        f"<= {CACHE}",
        cache.nbytes <= CACHE,
    )


def held(scheduler: Scheduler) -> Iterator[tuple[str, float]]:
    """All that requests can hold in a scheduler."""
    queue, engine = scheduler.queue, scheduler.engine
    assert isinstance(queue, FairQueue)
    taken = scheduler.slots - len(set(scheduler.free_slots))
    slot = KVPool.bytes_for(engine.geometry, 1, engine.capacity.context)
    yield "slots", taken
    yield "bytes of K/V", taken * slot
    yield "queue entries", len(queue) + sum(map(queue.waiting, TENANTS))
    yield "running", len(scheduler.running) + sum(map(queue.running, TENANTS))
    yield "open", len(scheduler.open)
    yield "reserved turns", len(queue._turns)
    yield "deadlines", len(scheduler.deadlines)
