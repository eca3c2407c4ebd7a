"""Clients who leave at any moment, over both protocols, beside others who stay.

Knows how to leave; in which phase each of them was is read from the rows it was charged with.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgemma.client_errors import ClientError
from dgemma.front.triton import Question, Triton
from dgemma.geometry import Geometry
from dgemma.tenants.days import Days
from dgemma.tenants.usage import Entry
from tests.accept.chaos_faults import (
    SEED,
    WARM,
    Subject,
    afterwards,
    ending,
    in_flight,
    nobody_there,
    nothing_more,
)
from tests.accept.chaos_load import CLIENTS, Load
from tests.accept.chaos_service import Readiness, Service, started, within
from tests.accept.main_job import Line

LEAVERS = 24  # at the same time: with the load more than there are slots
LONGEST_STAY_S = 1.2
STEPS = 12  # of every canvas
PROMPT_CANVASES = 6  # the longest prompt
PHASES = ("in the queue", "prefill", "the first canvas", "a commit or behind it")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a reset instead of an end


def leavers(engine: Path, checkpoint: Path, cancels: int) -> Iterator[Line]:
    """Lines about the cancels and about what is left of them."""
    length = Geometry.from_checkpoint(checkpoint).canvas_length
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Path(scratch, "ledger")
        environment = {"DGEMMA_LEDGER": str(ledger)}
        with started(engine, checkpoint, Path(scratch, "log"), environment) as service:
            subject = Subject.of(service)
            with Load(service, subject.requests, SEED) as load, Readiness(service) as readiness:
                within(60, lambda: load.answered_over_both(0.0, 1))
                counts = asyncio.run(_all_leave(service, cancels, length))
                gone = time.monotonic()
                right = within(60, lambda: load.answered_over_both(gone, WARM * CLIENTS))
            phases = Counter(_phase(entry, length) for entry in _cancelled(ledger))
            away = sum(status != 200 for _, status in readiness.seen)
            yield Line(
                f"{cancels} clients leave",
                ", ".join(f"{count} {how}" for how, count in sorted(counts.items())),
                "",
            )
            yield Line(
                "  cancelled in",
                ", ".join(f"{phase} {phases[phase]}" for phase in PHASES),
                "each phase",
                all(phases[phase] for phase in PHASES),
            )
            yield Line("  not ready meanwhile", f"{away} of {len(readiness.seen)}", "0", not away)
            yield in_flight("  others meanwhile", load.outcomes, load.outcomes[0].ended, None)
            yield afterwards(load.outcomes, 0.0, right)
            yield nobody_there(service)
            yield nothing_more(subject)
            yield from ending(subject)


def _cancelled(ledger: Path) -> list[Entry]:
    days = Days(ledger)
    return [e for day in days.all() for e in days.entries(day) if e.outcome == "cancelled"]


def _phase(entry: Entry, length: int) -> str:
    """By the rows that were charged: chunks of the prompt, then steps, then a commit among them."""
    chunks = -(-entry.prompt_tokens // length)
    if not entry.service_units:
        return PHASES[0]
    if entry.service_units <= chunks:
        return PHASES[1]
    return PHASES[2] if entry.service_units <= chunks + STEPS else PHASES[3]


async def _all_leave(service: Service, cancels: int, length: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    numbers = iter(range(cancels))
    triton = Triton(service.grpc)

    async def leaver() -> None:
        for number in numbers:
            rng = random.Random(f"leaves/{number}")
            prompt = "".join(rng.choices("0123456789 ", k=rng.randint(1, PROMPT_CANVASES * length)))
            stay = rng.random() * LONGEST_STAY_S
            if number % 2:
                how = await _leave_http(service, prompt, stay, rng)
            else:
                how = await _leave_grpc(triton, prompt, stay)
            counts[how] += 1

    await asyncio.gather(*(leaver() for _ in range(LEAVERS)))
    await triton.close()
    return counts


def _sampling(prompt: str) -> dict[str, Any]:
    return {
        "max_denoising_steps": STEPS,
        "confidence_threshold": 0.0,
        "ignore_eos": True,
        "seed": len(prompt),
    }


async def _leave_grpc(triton: Triton, prompt: str, stay: float) -> str:
    options = {**_sampling(prompt), "max_new_tokens": 288}

    async def ask() -> None:
        async for _ in triton.ask(Question(prompt, options, "draft", 60.0)):
            pass

    try:
        await asyncio.wait_for(ask(), stay)
    except TimeoutError:
        return "by gRPC"
    except ClientError as error:
        return f"by gRPC with {type(error).__name__}"
    return "by gRPC after the end"


async def _leave_http(service: Service, prompt: str, stay: float, rng: random.Random) -> str:
    body = json.dumps(
        {"prompt": prompt, "stream": "draft", "max_tokens": 288, **_sampling(prompt)}
    ).encode()
    host, _, port = service.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    heard = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(stay):
            while part := await reader.read(1 << 16):
                heard = heard[-64:] + part
                if b"[DONE]" in heard:
                    break
    if rng.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return "by HTTP after the end" if b"[DONE]" in heard else "by HTTP"
