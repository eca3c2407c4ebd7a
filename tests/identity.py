"""Does a request get the same tokens alone and in a crowd? Asked of any scheduler, in random mixes.

A mix is one watched request among others that arrive at random passes, with random lengths,
settings, templates and cancellations, of three tenants: where slots are few, requests make room for
one another at block borders. `keyed_by_row` is the negative control: it must differ.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dgemma.assemble import Parts
from dgemma.request import RawRequest
from dgemma.scheduler.events import Block, Event, Finished
from dgemma.scheduler.tenancy import Tenant
from dgemma.tail.draws import Draws, Moment
from dgemma.tail.noise import Race
from dgemma.tail.tail import Tail

CROWD = 8  # requests of a mix, the watched one included
TENANTS = [Tenant(f"tenant-{number}", weight) for number, weight in enumerate((1.0, 2.0, 4.0))]
LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789.\n"

Outcome = tuple[str, tuple[int, ...], tuple[int, ...]]  # reason, token ids, steps per block


@dataclass(frozen=True)
class Arrival:
    """One request of a mix: what it asks, the pass before which it comes, and when it goes."""

    raw: RawRequest
    before_pass: int
    cancelled_before: int | None = None


def mixes_differ(parts_factory: Callable[[], Parts], mixes: int, seed: int) -> int:
    """The number of mixes in which the watched request's tokens are not those it gets alone.

    One set of parts runs everything, so slots hold what earlier requests left there.
    """
    parts = parts_factory()
    length = parts.scheduler.engine.geometry.canvas_length
    return sum(
        _differs(parts, random.Random(f"{seed}/{index}"), length, f"{seed}-{index}")
        for index in range(mixes)
    )


def keyed_by_row(parts: Parts) -> Parts:
    """The same parts, but noise depends on the row in which a request happens to stand."""
    tail = parts.scheduler.tail
    # In torch: graphs take one row at a time and know no other.
    parts.scheduler.tail = Tail(tail.head, RowKeyedDraws(tail.draws))
    return parts


@dataclass(frozen=True)
class RowKeyedDraws:
    """Draws with the mistake that the identity check exists to find."""

    inner: Draws

    def initial(self, seed: int, block: int) -> Tensor:
        return self.inner.initial(seed, block)

    def step(self, moments: Sequence[Moment]) -> tuple[Tensor, Race | None]:
        return self.inner.step(_by_row(moments))

    def invert(self, moments: Sequence[Moment], probabilities: Tensor) -> Tensor:
        return self.inner.invert(_by_row(moments), probabilities)


def _by_row(moments: Sequence[Moment]) -> list[Moment]:
    return [replace(moment, seed=moment.seed + row) for row, moment in enumerate(moments)]


def _differs(parts: Parts, rng: random.Random, length: int, name: str) -> bool:
    watched = rng.randrange(CROWD)
    crowd = [arrival(rng, length, may_leave=index != watched) for index in range(CROWD)]
    alone = run(parts, [replace(crowd[watched], before_pass=0)], f"{name}-alone")
    return run(parts, crowd, name)[watched] != alone[0]


def arrival(rng: random.Random, length: int, may_leave: bool) -> Arrival:
    before = rng.randrange(12)
    leaves = may_leave and rng.random() < 0.15
    return Arrival(
        any_request(rng, length), before, before + rng.randrange(1, 12) if leaves else None
    )


def any_request(rng: random.Random, length: int) -> RawRequest:
    """Any prompt, length, settings; one request in four fills in a template."""
    settings: dict[str, Any] = {
        "seed": rng.randrange(2**63),
        "max_denoising_steps": rng.randint(1, 10),
        "ignore_eos": rng.random() < 0.7,
        "return_token_ids": True,
        "t_min": rng.choice([0.2, 0.4, 1.0]),
        "t_max": rng.choice([1.0, 1.5]),
        "entropy_bound": rng.choice([0.1, 1.0, 20.0]),
        "stability_threshold": rng.choice([0, 1, 2]),
        "confidence_threshold": rng.choice([0.0, 0.005, 0.5]),
    }
    template = None
    if rng.random() < 0.25:
        template = _template(rng, length)
    else:
        settings["max_new_tokens"] = rng.randint(1, 3 * length)
    return RawRequest(
        text_input=any_text(rng, rng.randint(1, 2 * length)).encode(),
        canvas_template=template and template.encode(),
        sampling_parameters=json.dumps(settings).encode(),
    )


def _template(rng: random.Random, length: int) -> str:
    parts = []
    for _ in range(rng.randint(1, 4)):
        parts += [
            any_text(rng, rng.randint(1, length // 4)),
            f"<|gap:{rng.randint(1, length // 2)}|>",
        ]
    return "".join(parts)


def any_text(rng: random.Random, size: int) -> str:
    return "".join(rng.choices(LETTERS, k=size))


def run(parts: Parts, crowd: Sequence[Arrival], name: str) -> list[Outcome]:
    scheduler = parts.scheduler
    heard: list[list[Event]] = [[] for _ in crowd]
    steps = 0
    while scheduler.busy or steps <= max(arrival.before_pass for arrival in crowd):
        for index, arrival in enumerate(crowd):
            if arrival.before_pass == steps:
                request = parts.parser.parse(arrival.raw, f"{name}/{index}")
                tenant = TENANTS[index % len(TENANTS)]
                scheduler.submit(replace(request, tenant=tenant), heard[index].append)
            if arrival.cancelled_before == steps:
                scheduler.cancel(f"{name}/{index}")
        scheduler.step()
        steps += 1
    return [_outcome(events) for events in heard]


def _outcome(events: Sequence[Event]) -> Outcome:
    last = events[-1]
    assert isinstance(last, Finished), "every request ends"
    if last.error is not None:
        raise last.error
    ids = [t for event in events if isinstance(event, Block) for t in event.delta.token_ids]
    return last.finish_reason, tuple(ids), last.usage.denoising_steps
