"""How long passes take, and how long they would take if only memory mattered.

Knows clocks of hosts and GPUs, and medians; the floor's arithmetic is `dgemma.roofline`'s.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dgemma.bench.passes import timed
from dgemma.bench.report import Speed
from dgemma.engine.base import Engine
from dgemma.roofline.published import floor_ms
from dgemma.roofline.sizes import Model, pass_bytes
from dgemma.sampling import Sampling
from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Tail
from dgemma.targets import Gpu

WARM = 2  # runs that are not counted
MOST_RUNS = 1000
# No canvas of a measurement is ever done, so every run does the same work.
ENDLESS = Sampling(
    max_new_tokens=2**30,
    max_denoising_steps=WARM + MOST_RUNS,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    stability_threshold=2**30,
    confidence_threshold=0.0,
    seed=0,
    stop=(),
    ignore_eos=True,
    return_token_ids=False,
)


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """One run, by the device's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


def median_ms(call: Callable[[], object], device: torch.device, runs: int) -> float:
    for _ in range(WARM):
        call()
    return statistics.median(milliseconds(call, device) for _ in range(runs))


@dataclass(frozen=True)
class Stand:
    """An engine under measurement, as what it is built of and on what."""

    engine: Engine
    model: Model
    gpu: Gpu | None  # with its bandwidth, where that is known

    def speeds(self, runs: int) -> Iterator[Speed]:
        """Every number of slots that doubles, with no context, and with half and all there is."""
        g, capacity = self.engine.geometry, self.engine.capacity
        most = capacity.context - g.canvas_length
        contexts = sorted({0, most // 2, most} & set(range(most + 1)))
        for rows in doubling(capacity.slots):
            for context in contexts:
                yield self._speed(rows, context, runs)

    def _speed(self, rows: int, context: int, runs: int) -> Speed:
        engine, g = self.engine, self.engine.geometry
        embedding = engine.embedding()
        tail = Tail(
            Head(embedding, g.final_logit_softcapping),
            SeededDraws(g.canvas_length, g.vocab_size, embedding.device),
        )
        wanted = timed(g, engine.capacity, rows, context)
        canvases = [(tail.begin(i, ENDLESS, None), ENDLESS) for i in range(rows)]

        def whole() -> None:
            tail.step(engine.forward(wanted), canvases)

        moved = pass_bytes(self.model, rows, context)
        return Speed(
            rows=rows,
            context=context,
            runs=runs,
            engine_ms=median_ms(lambda: engine.forward(wanted), embedding.device, runs),
            pass_ms=median_ms(whole, embedding.device, runs),
            floor_ms=None if self.gpu is None else floor_ms(moved, self.gpu),
        )


def doubling(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    return counts
