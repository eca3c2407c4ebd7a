"""Requests, and a scheduler whose engine is a fake, for tests that count passes and events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dgemma.answer import Answer
from dgemma.engine.base import Row
from dgemma.request import Request, StreamMode
from dgemma.sampling import Sampling
from dgemma.scheduler.events import Block, Draft, Event, Finished, Usage
from dgemma.scheduler.options import Options
from dgemma.scheduler.pace import Pace
from dgemma.scheduler.scheduler import Scheduler
from dgemma.scheduler.tenancy import EVERYONE, Tenant
from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Tail
from dgemma_build.demo.vocabulary import EOS, TURN_END, to_ids
from tests.dgemma.engine.fake_engine import FakeEngine
from tests.tiny_checkpoint import byte_tokenizer

TOKENIZER = byte_tokenizer()
SAMPLING = Sampling(
    max_new_tokens=8,
    max_denoising_steps=4,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    stability_threshold=1,
    confidence_threshold=0.005,
    seed=1,
    stop=(),
    ignore_eos=False,
    return_token_ids=True,
)


def request(
    name: str,
    *,
    prompt: Sequence[int] | str = "?",
    stream: StreamMode = StreamMode.BLOCK,
    pinned: Sequence[int] | None = None,
    tenant: Tenant = EVERYONE,
    priority: int | None = None,
    deadline_s: float | None = None,
    cache_salt: bytes = b"",
    shared_tokens: int = 0,
    **sampling: Any,
) -> Request:
    """A request by its name; the rest of `sampling` is as in SAMPLING."""
    ids = to_ids(prompt) if isinstance(prompt, str) else list(prompt)
    held = None if pinned is None else tuple(pinned)
    settings = replace(SAMPLING, **sampling)
    return Request(
        name,
        tuple(ids),
        settings,
        stream,
        held,
        tenant,
        cache_salt,
        shared_tokens,
        priority=priority,
        deadline_s=deadline_s,
    )


def fixed_steps(steps: int, **more: Any) -> dict[str, Any]:
    """Settings with which every canvas runs exactly this many denoise steps."""
    return {"max_denoising_steps": steps, "confidence_threshold": 0.0, **more}


@dataclass
class Desk:
    """A scheduler with what each request heard, by name."""

    engine: FakeEngine
    scheduler: Scheduler
    heard: dict[str, list[Event]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, engine: FakeEngine, options: Options | None = None, pace: Pace | None = None
    ) -> Desk:
        geometry = engine.geometry
        tail = Tail(
            Head(engine.embedding(), geometry.final_logit_softcapping),
            SeededDraws(geometry.canvas_length, geometry.vocab_size),
        )
        stops = frozenset({EOS, TURN_END})

        def answer(request: Request) -> Answer:
            return Answer(TOKENIZER, request.sampling, stops)

        return cls(engine, Scheduler(engine, tail, answer, options, pace))

    def submit(self, *requests: Request) -> None:
        for each in requests:
            self.heard[each.id] = []
            self.scheduler.submit(each, partial(self._hear, each.id))

    def _hear(self, name: str, event: Event) -> None:
        """Every request is held to what it may cost: its steps, and chunks that have none."""
        self.heard[name].append(event)
        if isinstance(event, Finished) and event.finish_reason in ("stop", "length"):
            usage = event.usage
            assert usage.passes <= sum(usage.denoising_steps) + usage.prefill_chunks

    def run(self, passes: int = 200) -> None:
        for _ in range(passes):
            if not self.scheduler.step():
                return
        assert not self.scheduler.busy, f"still running after {passes} passes"

    def end(self, name: str) -> Finished | None:
        last = self.heard[name][-1] if self.heard[name] else None
        return last if isinstance(last, Finished) else None

    def reason(self, name: str) -> str | None:
        end = self.end(name)
        return None if end is None else end.finish_reason

    def usage(self, name: str) -> Usage:
        end = self.end(name)
        assert end is not None, f"{name} has not ended"
        return end.usage

    def blocks(self, name: str) -> list[Block]:
        return [event for event in self.heard[name] if isinstance(event, Block)]

    def drafts(self, name: str) -> list[Draft]:
        return [event for event in self.heard[name] if isinstance(event, Draft)]

    def ids(self, name: str) -> list[int]:
        return [token for block in self.blocks(name) for token in block.delta.token_ids]


def desk(slots: int = 4, options: Options | None = None, **engine: Any) -> Desk:
    return Desk.of(FakeEngine(slots, **engine), options)


def modes(passes: Sequence[Sequence[Row]]) -> list[str]:
    """Each pass as one letter a row: e for encode, d for denoise."""
    return ["".join("d" if row.denoise else "e" for row in rows) for rows in passes]
