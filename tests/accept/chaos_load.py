"""Clients who ask all the time, over both protocols, and what became of each of their requests.

Knows requests with known answers; knows nothing of faults. A client asks again as soon as it has an
answer, and a moment after an error.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from dgemma.client import Client
from dgemma.client_errors import ClientError
from dgemma.front.triton import Question, Triton
from tests.accept.chaos_service import Service
from tests.bench.workload import tasks

CLIENTS = 12
TIMEOUT_S = 60.0
AFTER_AN_ERROR_S = 0.1
LONGEST = 192  # new tokens


@dataclass(frozen=True)
class Known:
    """A request and its answer."""

    prompt: str
    seed: int
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Outcome:
    """One request; `right` where it was answered, otherwise there is an `error`."""

    over: str
    began: float
    ended: float
    right: bool
    error: str = ""


def known(service: Service) -> list[Known]:
    """Each request alone; those among them that a program can check are answered right."""
    found = []
    with Client(service.grpc) as client:
        for seed, task in enumerate(tasks()):
            messages = [{"role": "user", "content": task.prompt}]
            answer = client.generate(messages=messages, seed=seed, max_new_tokens=LONGEST)
            found.append((Known(task.prompt, seed, answer.text), task.is_right(answer.text)))
    right = [each for each, is_right in found if is_right]
    if not right:
        raise RuntimeError("the service answers nothing right before any fault")
    return right


class Load:
    """Running inside the block; every request has ended after it."""

    def __init__(self, service: Service, requests: Sequence[Known], seed: int) -> None:
        self._service, self._requests, self._seed = service, requests, seed
        self.outcomes: list[Outcome] = []
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._clients()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def answered(self, since: float = 0.0) -> int:
        """Requests that began since then."""
        return sum(not outcome.error for outcome in list(self.outcomes) if outcome.began >= since)

    def answered_over_both(self, since: float, count: int) -> bool:
        """Whether each protocol has answered as many requests that began since then."""
        overs = [o.over for o in list(self.outcomes) if not o.error and o.began >= since]
        return min(overs.count("gRPC"), overs.count("HTTP")) >= count

    async def _clients(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        over = "HTTP" if number % 2 else "gRPC"
        triton = Triton(self._service.grpc)
        url = f"http://{self._service.http}"
        async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as web:
            while not self._over:
                request, began = rng.choice(self._requests), time.monotonic()
                right, error = False, ""
                try:
                    text = await (
                        _over_http(web, request, rng)
                        if number % 2
                        else _over_grpc(triton, request, rng)
                    )
                    right = text == request.answer
                except (ClientError, httpx2.HTTPError, RuntimeError) as failure:
                    error = type(failure).__name__
                self.outcomes.append(Outcome(over, began, time.monotonic(), right, error))
                if error:
                    await triton.close()  # gRPC would wait before it connects again
                    triton = Triton(self._service.grpc)
                    await asyncio.sleep(AFTER_AN_ERROR_S)
        await triton.close()


async def _over_grpc(triton: Triton, request: Known, rng: random.Random) -> str:
    options = {
        "messages": request.messages,
        "seed": request.seed,
        "max_new_tokens": LONGEST,
    }
    question = Question(None, options, rng.choice(["none", "block", "draft"]), TIMEOUT_S)
    return "".join([u.text async for u in triton.ask(question) if u.kind != "draft"])


async def _over_http(web: httpx2.AsyncClient, request: Known, rng: random.Random) -> str:
    body: dict[str, Any] = {
        "messages": request.messages,
        "seed": request.seed,
        "max_tokens": LONGEST,
    }
    if rng.random() < 0.3:
        answer = await web.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])
    body["stream"] = rng.choice([True, "draft"])
    text, last = "", ""
    async with web.stream("POST", "/v1/chat/completions", json=body) as answered:
        answered.raise_for_status()
        async for line in answered.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
            last = line or last
    if last != "data: [DONE]":
        raise RuntimeError("the stream broke off")
    return text
