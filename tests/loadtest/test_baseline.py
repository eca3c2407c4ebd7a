"""The autoregressive endpoint that computes nothing, by a client of HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from dgemma_loadtest.baseline.server import application
from dgemma_loadtest.modelled.roofline import Machine

MACHINE = Machine.named("h100-fp8")
TOKENS = 40
ASKED = {
    "messages": [{"role": "user", "content": "word " * 40}],
    "max_tokens": TOKENS,
    "ignore_eos": True,
    "stream": True,
}


def with_client(act: Callable[[Any], Awaitable[None]], slots: int = 4) -> None:
    async def run() -> None:
        async with TestClient(TestServer(application(MACHINE, slots))) as client:
            await act(client)

    asyncio.run(run())


async def stream(client: Any, **changes: object) -> tuple[list[dict[str, Any]], float]:
    began = time.monotonic()
    response = await client.post("/v1/chat/completions", json=ASKED | changes)
    lines = [line async for line in response.content if line.startswith(b"data: ")]
    assert lines[-1] == b"data: [DONE]\n"
    return [json.loads(line[6:]) for line in lines[:-1]], time.monotonic() - began


def test_every_token_is_an_event_and_usage_says_that_it_is_simulated() -> None:
    async def act(client: Any) -> None:
        events, _ = await stream(client)
        *tokens, usage = events
        assert len(tokens) == TOKENS
        assert tokens[-1]["choices"][0]["finish_reason"] == "stop"
        assert usage["usage"] == {
            "prompt_tokens": 50,
            "completion_tokens": TOKENS,
            "total_tokens": 90,
            "simulated": "h100-fp8",
        }

    with_client(act)


def test_an_answer_takes_its_passes() -> None:
    """Never less than the model says, and not much more on a host that is not too busy."""

    async def act(client: Any) -> None:
        pass_s = MACHINE.autoregressive_s(1, 0, 64)
        took = min([(await stream(client))[1] for _ in range(3)])
        assert TOKENS * pass_s * 0.95 < took < TOKENS * pass_s * 1.5

    with_client(act)


def test_requests_share_passes_and_wait_for_slots() -> None:
    async def act(client: Any) -> None:
        (_, alone) = await stream(client)
        together = await asyncio.gather(*(stream(client) for _ in range(4)))
        assert max(took for _, took in together) < 3 * alone
        crowd = await asyncio.gather(*(stream(client) for _ in range(8)))
        assert max(took for _, took in crowd) > 1.5 * max(took for _, took in together)

    with_client(act)


def test_whoever_leaves_makes_room() -> None:
    async def act(client: Any) -> None:
        async with client.post("/v1/chat/completions", json=ASKED | {"max_tokens": 4000}) as left:
            await left.content.readline()
        events, took = await stream(client)
        assert len(events) == TOKENS + 1
        assert took < 2000 * MACHINE.autoregressive_s(1, 0, 64)

    with_client(act, slots=1)


def test_completions_and_what_it_says_of_itself() -> None:
    async def act(client: Any) -> None:
        whole = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        said = await whole.json()
        assert said["choices"][0]["text"].startswith(" word")
        models = await (await client.get("/v1/models")).json()
        assert models["data"][0]["id"] == "simulated-autoregressive-h100-fp8"
        metrics = await (await client.get("/v1/metrics")).text()
        assert 'simulated="h100-fp8"' in metrics

    with_client(act)


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"prompt": "a", "max_tokens": "x"}'])
def test_a_request_that_is_none_is_refused(body: bytes) -> None:
    async def act(client: Any) -> None:
        response = await client.post("/v1/completions", data=body)
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"

    with_client(act)
