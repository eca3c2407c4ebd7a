"""Worker: the workload by our scheduler, tail and engine in one process, without Triton.

Run as `python -m tests.bench.in_process ENGINE CHECKPOINT THREADS [SLOTS]`. It also times engine
and tail by themselves.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dgemma.assemble import assemble
from dgemma.engine.base import Engine, Row
from dgemma.request import RawRequest
from dgemma.scheduler.events import Block, Event, Finished
from dgemma.scheduler.scheduler import Scheduler
from dgemma.tail.tail import Tail
from tests.bench.channel import answer_lines
from tests.bench.workload import FIXED, LONGEST, Measured, tasks

SLOTS = 8


@dataclass
class Stopwatch:
    """Seconds spent in what it wraps."""

    seconds: float = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return wrapper


class TimedEngine:
    """An engine whose passes are timed; everything else is the engine's."""

    def __init__(self, engine: Engine, watch: Stopwatch) -> None:
        self.geometry, self.capacity = engine.geometry, engine.capacity
        self.forward: Callable[[Sequence[Row]], Tensor] = watch.timed(engine.forward)
        self.embedding = engine.embedding
        self.snapshot, self.restore = engine.snapshot, engine.restore


class TimedTail(Tail):
    """A tail whose steps are timed."""

    def __init__(self, tail: Tail, watch: Stopwatch) -> None:
        super().__init__(tail.head, tail.draws)
        vars(self).update(step=watch.timed(tail.step))


class InProcess:
    """Requests straight to a scheduler."""

    def __init__(self, engine: Path, checkpoint: Path, threads: int, slots: int = SLOTS) -> None:
        self.parts = assemble(engine, checkpoint, slots=slots, threads=threads)
        gc.collect()
        gc.freeze()  # as the service does
        self.engine, self.tail = self.parts.scheduler.engine, self.parts.scheduler.tail

    def __call__(self, what: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = getattr(self, what)(**arguments)
        return result

    def round(self) -> dict[str, Any]:
        """Every task once, one after another."""
        tokens = steps = right = 0
        work = tasks()
        raws = [raw(task.prompt, seed=seed) for seed, task in enumerate(work)]
        began = time.perf_counter()
        heard = [self._run(self.parts.scheduler, [request])[0] for request in raws]
        seconds = time.perf_counter() - began
        for task, events in zip(work, heard, strict=True):
            text = "".join(e.delta.text for e in events if isinstance(e, Block))
            usage = events[-1].usage if isinstance(events[-1], Finished) else None
            assert usage is not None
            tokens += usage.completion_tokens
            steps += sum(usage.denoising_steps)
            right += task.is_right(text)
        return Measured(seconds, tokens, steps, right, len(work)).to_dict()

    def one(self, parameters: dict[str, Any], times: int) -> dict[str, Any]:
        """Median wall time of one request, from its bytes to its last event."""
        request, samples = raw(tasks()[0].prompt, **parameters), []
        for _ in range(times):
            began = time.perf_counter()
            self._run(self.parts.scheduler, [request])
            samples.append(time.perf_counter() - began)
        return {"seconds": median(samples)}

    def together(self, requests: int, parameters: dict[str, Any]) -> dict[str, Any]:
        """Tokens per second of as many requests at once."""
        work = [raw(tasks()[0].prompt, seed=seed, **parameters) for seed in range(requests)]
        began = time.perf_counter()
        ends = [events[-1] for events in self._run(self.parts.scheduler, work)]
        seconds = time.perf_counter() - began
        tokens = sum(e.usage.completion_tokens for e in ends if isinstance(e, Finished))
        return {"tokens_per_second": tokens / seconds}

    def outside(self, rows: int) -> dict[str, Any]:
        """Microseconds a pass spends outside engine and tail, with `rows` requests at a time."""
        watch, tail_watch = Stopwatch(), Stopwatch()
        scheduler = Scheduler(
            TimedEngine(self.engine, watch),
            TimedTail(self.tail, tail_watch),
            self.parts.scheduler.answer_factory,
        )
        requests = [raw(tasks()[0].prompt, seed=i, **FIXED) for i in range(rows)]
        parsed = [self.parts.parser.parse(r, str(i)) for i, r in enumerate(requests)]
        for request in parsed:
            scheduler.submit(request, lambda event: None)
        began = time.perf_counter()
        while scheduler.step():
            pass
        rest = time.perf_counter() - began - watch.seconds - tail_watch.seconds
        return {
            "microseconds": rest / scheduler.passes * 1e6,
            "engine_ms": watch.seconds / scheduler.passes * 1e3,
            "tail_ms": tail_watch.seconds / scheduler.passes * 1e3,
        }

    def bare(self, rows: int, passes: int, contexts: Sequence[int] | None = None) -> dict[str, Any]:
        """Tokens per second of engine and tail alone: `rows` canvases, no prompts, no commits.

        So many passes behind each of `contexts`, in tokens; by default behind one canvas.
        """
        length = self.engine.geometry.canvas_length
        request = self.parts.parser.parse(raw(tasks()[0].prompt, seed=0, **FIXED), "bare")
        steps = request.sampling.max_denoising_steps
        sampling = replace(request.sampling, max_denoising_steps=passes)
        text = torch.tensor(request.prompt + (0,) * length)[:length]
        seconds, places = 0.0, contexts or [length]
        for context in places:
            for start in range(0, context, length):
                valid = min(length, context - start)
                self.engine.forward([Row(text, slot, start, valid, False) for slot in range(rows)])
            canvases = [self.tail.begin(slot, sampling, None) for slot in range(rows)]
            began = time.perf_counter()
            for _ in range(passes):
                hidden = self.engine.forward(
                    [
                        Row(canvas.ids, slot, context, length, True, canvas.soft)
                        for slot, canvas in enumerate(canvases)
                    ]
                )
                self.tail.step(hidden, [(canvas, sampling) for canvas in canvases])
            seconds += time.perf_counter() - began
        return {"tokens_per_second": rows * length / (steps * seconds / passes / len(places))}

    def prompt_tokens(self) -> dict[str, Any]:
        """Of the request that `together` repeats."""
        return {"tokens": len(self.parts.parser.parse(raw(tasks()[0].prompt), "x").prompt)}

    def _run(self, scheduler: Scheduler, requests: list[RawRequest]) -> list[list[Event]]:
        heard: list[list[Event]] = [[] for _ in requests]
        for index, request in enumerate(requests):
            parsed = self.parts.parser.parse(request, str(index))
            scheduler.submit(parsed, heard[index].append)
        while scheduler.step():
            pass
        return heard


def raw(prompt: str, **parameters: Any) -> RawRequest:
    chat = [{"role": "user", "content": prompt}]
    sampling = {"max_new_tokens": LONGEST, **parameters}
    return RawRequest(
        messages=json.dumps(chat).encode(), sampling_parameters=json.dumps(sampling).encode()
    )


if __name__ == "__main__":
    engine, checkpoint, *numbers = sys.argv[1:]
    answer_lines(InProcess(Path(engine), Path(checkpoint), *map(int, numbers)))
