"""Does a request get the same bits whatever runs beside it, and no more passes than it needs?

Knows what is promised of identity, and controls that must break it; mixes come from
`tests.accept.mixes`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from dgemma.assemble import Parts, assemble
from dgemma.engine.base import Row
from dgemma.tail.tail import Tail
from tests.accept.decisions import Divergence
from tests.accept.main_job import Line
from tests.accept.mixes import MOST, Asked, Heard, Seam, Stage, any_mix
from tests.identity import RowKeyedDraws

SLOTS = (1, 2, 3, 5, MOST)  # where they are few, requests make room for one another
CONTROLS = 0.1  # share of the mixes that controls run

progress = Console(stderr=True)


@dataclass
class Findings:
    """What all mixes of one kind have shown."""

    requests: int = 0
    differ: int = 0
    too_many_passes: int = 0
    preemptions: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    in_mid_canvas: int = 0  # answers that ended within a canvas at a stop id
    steps: int = 0  # denoise steps
    apart: list[float] = field(default_factory=list)  # hidden states, forced along the same tokens
    hits: int = 0
    shifted: int = 0  # hits that hold blocks encoded in other chunks
    fused: int = 0  # rows behind a partner
    evicted: int = 0
    divergences: list[Divergence] = field(default_factory=list)

    def add(self, heard: Heard, length: int) -> None:
        usage = heard.usage
        self.requests += 1
        self.ends[heard.finish_reason] += 1
        self.too_many_passes += not heard.within_its_passes
        stopped = heard.finish_reason == "stop"
        self.in_mid_canvas += stopped and usage.completion_tokens % length > 0
        self.steps += len(heard.decisions)
        self.hits += usage.cached_tokens > 0


def opened(engine: Path, checkpoint: Path) -> Parts:
    return assemble(engine, checkpoint, slots=MOST, threads=len(os.sched_getaffinity(0)))


def crowds(
    parts: Parts,
    mixes: Sequence[int],
    seed: int,
    change: Callable[[Stage], None] = lambda stage: None,
) -> Findings:
    """Every request of every mix against itself alone; `change` is done to the crowds' stages."""
    engine, tail = parts.scheduler.engine, parts.scheduler.tail
    alone = Stage(parts, Seam(engine, 1), tail)
    stages = [Stage(parts, Seam(engine, slots), tail) for slots in SLOTS]
    for stage in stages:
        change(stage)
    found = Findings()
    for index in track(mixes, "mixes", console=progress, transient=True):
        rng = random.Random(f"crowd {seed}/{index}")
        stage = stages[index % len(stages)]
        stage.scheduler.prefill_rows = rng.choice([1, 2, 4])
        crowd = any_mix(rng, parts, f"{seed}-{index}")
        for asked, heard in zip(crowd, stage.run(crowd), strict=True):
            found.add(heard, engine.geometry.canvas_length)
            [reference] = alone.run([Asked(asked.request)])
            if not has_the_bits_of(heard, reference):
                found.differ += 1
    found.preemptions = sum(stage.scheduler.preemptions for stage in stages)
    return found


def has_the_bits_of(heard: Heard, reference: Heard) -> bool:
    """Of one that was cancelled, as far as it came."""
    cancelled = heard.finish_reason == "cancelled"
    if heard.ids != (reference.ids[: len(heard.ids)] if cancelled else reference.ids):
        return False
    if not cancelled and heard.decisions.keys() != reference.decisions.keys():
        return False
    return all(
        moment in reference.decisions
        and torch.equal(decision.hidden, reference.decisions[moment].hidden)
        for moment, decision in heard.decisions.items()
    )


class Leaking(Seam):
    """Neighbours change the last bits of a row: the mistake that comparing bits must find."""

    def forward(self, rows: Sequence[Row]) -> Tensor:
        hidden = super().forward(rows)
        return hidden if len({row.slot for row in rows}) == 1 else hidden * (1 + 2**-23)


def leak(stage: Stage) -> None:
    stage.seam = Leaking(stage.seam.engine, stage.seam.capacity.slots)
    stage.begin()


def key_by_row(stage: Stage) -> None:
    # In torch: graphs take one row at a time and know no other.
    stage.tail = Tail(stage.tail.head, RowKeyedDraws(stage.tail.draws))


def identity(engine: Path, checkpoint: Path, mixes: int) -> Iterator[Line]:
    """Arrivals, cancellations and pre-emptions change no bit."""
    parts = opened(engine, checkpoint)
    found = crowds(parts, range(mixes), seed=1)
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(found.ends.items()))
    yield Line(
        f"{mixes} mixes, {found.requests} requests",
        f"{ends}; {found.preemptions} pre-emptions, {found.steps} denoise steps",
        "",
    )
    seen = f"{found.differ} requests differ"
    yield Line("  ids and hidden bits as alone", seen, "none", found.differ == 0)
    yield from passes(found)
    few = max(1, round(mixes * CONTROLS))
    for name, change in (("noise keyed by row", key_by_row), ("one last bit of a crowd", leak)):
        control = crowds(parts, range(few), 1, change)
        seen = f"{control.differ} of {control.requests} requests differ"
        yield Line(f"  control: {name}", seen, "some", control.differ > 0)


def passes(found: Findings) -> Iterator[Line]:
    yield Line(
        "  passes <= denoise steps + prefill chunks",
        f"not of {found.too_many_passes}; {found.in_mid_canvas} stopped within a canvas",
        "of every request",
        found.too_many_passes == 0 and found.in_mid_canvas > 0,
    )
