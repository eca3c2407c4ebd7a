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
from threading import Thread
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
from tests.bench.workload import FIXED, FIXED_STEPS, LONGEST, Measured, tasks

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

    def bare(self, rows: int, passes: int) -> dict[str, Any]:
        """Tokens per second of engine and tail alone: canvases behind one other, nothing else."""
        length = self.engine.geometry.canvas_length
        self._encode(rows, 0, length)
        return self._speed(rows, self._steps(rows, length, passes), passes)

    def bare_requests(self, rows: int, contexts: Sequence[int]) -> dict[str, Any]:
        """Tokens per second of engine and tail alone, which do all that so many requests need of
        them: each canvas's steps behind its context, and the chunk before it encoded.
        """
        length, seconds = self.engine.geometry.canvas_length, 0.0
        for context in contexts:
            for start in range(0, context - length, length):
                self._encode(rows, start, length)
            seconds += self._steps(rows, context, FIXED_STEPS, encoding=True)
        return self._speed(rows, seconds, FIXED_STEPS * len(contexts))

    def _speed(self, rows: int, seconds: float, passes: int) -> dict[str, Any]:
        length = self.engine.geometry.canvas_length
        return {"tokens_per_second": rows * length * passes / FIXED_STEPS / seconds}

    def _encode(self, rows: int, start: int, valid: int) -> None:
        self.engine.forward([self._chunk(slot, start, valid) for slot in range(rows)])

    def _chunk(self, slot: int, start: int, valid: int) -> Row:
        length = self.engine.geometry.canvas_length
        prompt = self.parts.parser.parse(raw(tasks()[0].prompt), "bare").prompt
        return Row(torch.tensor(prompt + (0,) * length)[:length], slot, start, valid, False)

    def _steps(self, rows: int, context: int, passes: int, encoding: bool = False) -> float:
        """Seconds for so many steps behind `context` tokens, the last of which the first pass
        encodes if it is `encoding`.
        """
        length = self.engine.geometry.canvas_length
        sampling = self.parts.parser.parse(raw("", **FIXED), "bare").sampling
        sampling = replace(sampling, max_denoising_steps=passes)
        canvases = [self.tail.begin(slot, sampling, None) for slot in range(rows)]
        start = max(0, context - length)
        chunks = [self._chunk(slot, start, context - start) for slot in range(rows)]
        began = time.perf_counter()
        for step in range(passes):
            together = encoding and step == 0
            denoise = [
                Row(canvas.ids, slot, context, length, True, canvas.soft, slot if together else -1)
                for slot, canvas in enumerate(canvases)
            ]
            hidden = self.engine.forward([*chunks, *denoise] if together else denoise)
            self.tail.step(hidden[-rows:], [(canvas, sampling) for canvas in canvases])
        return time.perf_counter() - began

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
    worker = InProcess(Path(engine), Path(checkpoint), *map(int, numbers))
    Thread(target=answer_lines, args=(worker,)).start()  # a thread of its own, as the service has
