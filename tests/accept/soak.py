"""Half an hour of load that the service can bear, and what has changed by its end.

Knows arrivals, latencies and memory; both protocols get half of the requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import Progress

from dgemma.client_errors import ClientError
from dgemma.front.triton import Question, Triton
from tests.accept.fuzz import crowd, growth
from tests.accept.main_job import Line
from tests.accept.surface_service import Surface, Traces, surface
from tests.bench.workload import LONGEST, tasks

WARM = 1 / 6  # of the time: until then every process has met its longest queue
LOAD = 0.8  # of what is completed with as many clients as there is room for
SLOTS = 8
CALIBRATION_S = 20.0
TIMEOUT_S = 60.0
SEED = 4


@dataclass(frozen=True)
class Outcome:
    """One request."""

    due_s: float  # since the load began
    latency_s: float  # from when it was due
    tokens: int
    error: str  # empty where there was none


Ask = Callable[[int], Coroutine[Any, Any, int]]  # of a number, the tokens of an answer


class Load:
    """Requests by their numbers, the even ones over gRPC. For one event loop."""

    def __init__(self, service: Surface) -> None:
        self._triton = Triton(service.grpc_url)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx2.AsyncClient(base_url=service.http_url, timeout=TIMEOUT_S, limits=limits)
        self._tasks = tasks()

    async def close(self) -> None:
        await self._triton.close()
        await self._http.aclose()

    async def ask(self, number: int) -> int:
        """The tokens of the answer; raises what went wrong."""
        prompt = self._tasks[number % len(self._tasks)].prompt
        messages = [{"role": "user", "content": prompt}]
        return await (self._over_http if number % 2 else self._over_grpc)(messages, number)

    async def _over_grpc(self, messages: list[dict[str, str]], seed: int) -> int:
        options = {"messages": messages, "seed": seed, "max_new_tokens": LONGEST}
        tokens = 0
        async for update in self._triton.ask(Question(None, options, "block", TIMEOUT_S)):
            tokens = (update.usage or {}).get("completion_tokens", 0)
        return tokens

    async def _over_http(self, messages: list[dict[str, str]], seed: int) -> int:
        body = {"messages": messages, "seed": seed, "max_tokens": LONGEST, "stream": True}
        body["stream_options"] = {"include_usage": True}
        tokens, last = 0, ""
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answered:
            answered.raise_for_status()
            async for line in answered.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    tokens = (event.get("usage") or {}).get("completion_tokens", 0)
                last = line or last
        if last != "data: [DONE]":
            raise RuntimeError("the stream broke off")
        return tokens


async def capacity(load: Load, seconds: float) -> float:
    """Requests per second of clients who each wait for their answers, twice as many as slots."""
    ends = time.monotonic() + seconds
    done = 0

    async def client(first: int) -> None:
        nonlocal done
        number = first
        while time.monotonic() < ends:
            await load.ask(number)
            number += 2 * SLOTS + 1
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(client(first) for first in range(2 * SLOTS)))
    return done / (time.monotonic() - began)


async def arrivals(
    load: Load, rate: float, seconds: float, advance: Callable[[float], None]
) -> list[Outcome]:
    """Poisson arrivals that wait for nobody."""
    rng = random.Random(SEED)
    began = time.monotonic()
    outcomes: list[Outcome] = []

    async def one(number: int, due: float) -> None:
        tokens, error = 0, ""
        try:
            tokens = await load.ask(number)
        except (ClientError, httpx2.HTTPError, RuntimeError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:80]
        outcomes.append(Outcome(due, time.monotonic() - began - due, tokens, error))
        advance(due)

    async with asyncio.TaskGroup() as running:
        due, number = 0.0, 0
        while (due := due + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            running.create_task(one(number, due))
            number += 1
    return outcomes


async def _load(
    service: Surface, seconds: float, progress: Progress
) -> tuple[list[float], list[Outcome], list[dict[str, int]]]:
    """Capacities before and after, what came of each request, and memory at three moments."""
    load = Load(service)
    try:
        bar = progress.add_task("finding the capacity", total=seconds)
        await capacity(load, CALIBRATION_S / 4)
        before = await capacity(load, CALIBRATION_S)
        progress.update(bar, description=f"{LOAD * before:.1f} requests/s")
        memory: list[dict[str, int]] = []

        def advance(due: float) -> None:
            progress.update(bar, completed=due)
            if len(memory) < 2 and due > seconds * (WARM, (1 + WARM) / 2)[len(memory)]:
                memory.append(service.memory())

        outcomes = await arrivals(load, LOAD * before, seconds, advance)
        memory.append(service.memory())
        after = await capacity(load, CALIBRATION_S)
    finally:
        await load.close()
    return [before, after], outcomes, memory


def soak(engine: Path, checkpoint: Path, minutes: int) -> Iterator[Line]:
    """Lines about the load, and about what is left of it."""
    traces = Traces.before()
    seconds = 60.0 * minutes
    with (
        tempfile.TemporaryDirectory() as scratch,
        surface(
            engine,
            checkpoint,
            Path(scratch),
            {"DGEMMA_SLOTS": str(SLOTS), "NIM_LOG_LEVEL": "warning"},
        ) as service,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        crowd(service)
        capacities, outcomes, memory = asyncio.run(_load(service, seconds, progress))
        dead = service.dead()
    before, after = capacities
    tokens = sum(outcome.tokens for outcome in outcomes)
    yield Line(
        f"{minutes} minutes at {LOAD:.0%} of {before:.1f} requests/s",
        f"{len(outcomes) / seconds:.1f} requests/s, {tokens / seconds:.0f} tokens/s",
        "",
    )
    yield Line("  capacity afterwards", f"{after:.1f} requests/s, {after / before:.0%}", "")
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    seen = ", ".join(f"{count} {error}" for error, count in errors.most_common(3))
    yield Line("  errors", seen or "none", "none", not errors)
    first = _latencies(outcomes, 0.0, seconds / 3)
    last = _latencies(outcomes, seconds * 2 / 3, seconds)
    drift = median(last) / median(first)
    yield Line(
        "  median latency, first and last third",
        f"{1e3 * median(first):.0f} ms → {1e3 * median(last):.0f} ms, {drift:.2f} × "
        f"(p99 {1e3 * _p99(first):.0f} → {1e3 * _p99(last):.0f} ms)",
        "",  # near capacity it follows the machine's own speed
    )
    yield from growth(*memory)
    yield Line("  processes that ended", ", ".join(dead) or "none", "none", not dead)
    left = traces.left(service)
    yield Line("  left behind", ", ".join(left) or "nothing", "nothing", not left)


def _latencies(outcomes: list[Outcome], begin: float, end: float) -> list[float]:
    return [o.latency_s for o in outcomes if begin <= o.due_s < end and not o.error]


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]
