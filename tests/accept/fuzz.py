"""Thousands of requests that nobody should send, and the service afterwards.

Knows how many are under way and what is watched meanwhile: answers, processes, memory.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from rich.console import Console
from rich.progress import Progress

from tests.accept import fuzz_grpc, fuzz_http, grpc_exchange, http_exchange
from tests.accept.contract import CHAT, COUNTED
from tests.accept.main_job import Line
from tests.accept.surface_service import Surface, Traces, surface

SEED = 1
CLIENTS = {"HTTP": 24, "gRPC": 8}  # some of HTTP's wait for what does not come
WARM_UP = 1500  # more requests over each, before memory is looked at
GROWTH = 0.05
# What takes most memory, more of it than there are slots: a pass of all slots at the end of the
# context, which an engine keeps room for from then on.
LONGEST: dict[str, Any] = {
    "prompt": "x" * 240,
    "max_tokens": 768,
    "max_denoising_steps": 2,
    "ignore_eos": True,
    "confidence_threshold": 0.0,
}
CROWD, CROWDS = 32, 3
SETTLING = 300
ENVIRONMENT = {
    "NIM_LOG_LEVEL": "error",
    "DGEMMA_HTTP_READ_TIMEOUT_S": "2",  # many bodies never come
    # What is kept of prompts has to be full once warm.
    "DGEMMA_PREFIX_CACHE_MIB": "1",
}
SHOWN = 4  # of what was wrong


@dataclass
class Tally:
    """What came of one protocol's requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=list)  # their numbers
    sent: int = 0


Send = Callable[[int], Awaitable[tuple[str, str] | None]]  # outcome and what is wrong with it


def fuzz(engine: Path, checkpoint: Path, requests: int) -> Iterator[Line]:
    """Half of the requests over HTTP, half over gRPC, after a warm-up of both."""
    traces = Traces.before()
    with (
        tempfile.TemporaryDirectory() as scratch,
        surface(engine, checkpoint, Path(scratch), ENVIRONMENT) as service,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        tallies = {"HTTP": Tally(), "gRPC": Tally()}
        each = max(2, requests // 2)
        bar = progress.add_task("fuzzing", total=2 * (WARM_UP + each))
        run = Run(service, tallies, lambda: progress.advance(bar))
        crowd(service)
        run.numbers(range(-WARM_UP, 0))
        before, served = settled(service), _serves(service)
        run.numbers(range(each // 2))
        between = settled(service)
        run.numbers(range(each // 2, each))
        after, dead = settled(service), service.dead()
        served = served and _serves(service)
    for protocol, tally in tallies.items():
        yield from _lines(protocol, tally)
    yield Line("  processes that ended", ", ".join(dead) or "none", "none", not dead)
    yield Line("  a right answer afterwards", "yes" if served else "no", "yes", served)
    yield from growth(before, between, after)
    left = traces.left(service)
    yield Line("  left behind", ", ".join(left) or "nothing", "nothing", not left)


def growth(
    before: dict[str, int], between: dict[str, int], after: dict[str, int]
) -> Iterator[Line]:
    """A line for each process, bytes at three moments."""
    for role, size in before.items():
        grew = after[role] / size - 1
        seen = (
            f"{size / 2**20:.0f} MiB when warm, {between[role] / size - 1:+.1%}, then {grew:+.1%}"
        )
        yield Line(f"  memory of {role}", seen, f"<= {GROWTH:+.0%}", grew <= GROWTH)


def crowd(service: Surface) -> None:
    """As much as can be under way at the same time; raises where it is not answered."""

    async def ask() -> None:
        async with httpx2.AsyncClient(base_url=service.http_url, timeout=300) as http:
            sent = (http.post("/v1/completions", json=LONGEST) for _ in range(CROWD))
            for answered in await asyncio.gather(*sent):
                answered.raise_for_status()

    for _ in range(CROWDS):
        asyncio.run(ask())
        asyncio.run(_at_once(service, fuzz_grpc.large() * (CROWD // 4)))


def settled(service: Surface) -> dict[str, int]:
    """Memory when what only large requests needed has been given back, as far as it ever is."""
    found = []
    for _ in range(3):
        asyncio.run(_at_once(service, [fuzz_grpc.plain()] * SETTLING))
        found.append(service.memory())
    return {role: min(sizes[role] for sizes in found) for role in found[0]}


async def _at_once(service: Surface, requests: list[grpc_exchange.Asked]) -> None:
    room = asyncio.Semaphore(CLIENTS["gRPC"])
    async with grpc_exchange.open_channel(service.grpc_url) as channel:

        async def one(asked: grpc_exchange.Asked) -> None:
            async with room:
                await grpc_exchange.exchange(channel, asked)

        await asyncio.gather(*map(one, requests))


class Run:
    """Sends requests by their numbers, the same over each protocol, by `CLIENTS` at a time."""

    def __init__(
        self, service: Surface, tallies: dict[str, Tally], advance: Callable[[], None]
    ) -> None:
        self._service, self._tallies, self._advance = service, tallies, advance

    def numbers(self, numbers: range) -> None:
        asyncio.run(self._numbers(numbers))

    async def _numbers(self, numbers: range) -> None:
        http = urlsplit(self._service.http_url)
        assert http.hostname is not None and http.port is not None

        async def over_http(number: int) -> tuple[str, str] | None:
            asked = fuzz_http.request(SEED, number)
            answered = await http_exchange.exchange(str(http.hostname), int(http.port or 0), asked)
            if answered is None:
                return None
            return str(answered.status or "closed"), answered.wrong(asked)

        async with grpc_exchange.open_channel(self._service.grpc_url) as channel:

            async def over_grpc(number: int) -> tuple[str, str] | None:
                asked = fuzz_grpc.request(SEED, number)
                answered = await grpc_exchange.exchange(channel, asked)
                if answered is None:
                    return None
                refused = "refused" if answered.error else "answered"
                status = answered.status.name
                return refused if status == "OK" else status, answered.wrong(asked)

            ways: dict[str, Send] = {"HTTP": over_http, "gRPC": over_grpc}
            clients = []
            for protocol, send in ways.items():
                left = iter(numbers)
                tally = self._tallies[protocol]
                clients += [self._client(left, send, tally) for _ in range(CLIENTS[protocol])]
            await asyncio.gather(*clients)

    async def _client(self, numbers: Iterator[int], send: Send, tally: Tally) -> None:
        for number in numbers:
            outcome = await send(number)
            tally.sent += 1
            if outcome is None:
                tally.unanswered.append(number)
            else:
                tally.outcomes[outcome[0]] += 1
                if outcome[1]:
                    tally.wrong.append(f"{outcome[1]} (request {number})")
            self._advance()


def _lines(protocol: str, tally: Tally) -> Iterator[Line]:
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(tally.outcomes.items()))
    yield Line(f"{tally.sent} fuzzed requests over {protocol}", outcomes, "")
    answered = sum(tally.outcomes.values())
    seen = str(answered)
    if tally.unanswered:
        seen += f"; not request {', '.join(map(str, tally.unanswered[:SHOWN]))}"
    yield Line("  answered or closed", seen, str(tally.sent), answered == tally.sent)
    wrong = f"{len(tally.wrong)}: {'; '.join(tally.wrong[:SHOWN])}" if tally.wrong else "none"
    yield Line("  failures of the server", wrong, "none", not tally.wrong)


def _serves(service: Surface) -> bool:
    answered = httpx2.post(f"{service.http_url}/v1/chat/completions", json=CHAT, timeout=60)
    return answered.is_success and answered.json()["choices"][0]["message"]["content"] == COUNTED
