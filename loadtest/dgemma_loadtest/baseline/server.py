"""OpenAI's chat and completions for a batch that computes nothing.

Knows requests and server-sent events; every usage says `simulated`, and every answer is the same
word.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

from aiohttp import web

from dgemma_loadtest import __version__
from dgemma_loadtest.baseline.batch import Batch
from dgemma_loadtest.modelled.roofline import Machine

WORD = " word"  # one token
CHARACTERS = 4  # of a token of a prompt
MEAN_ANSWER, LONGEST = 512, 4096  # tokens, unless `ignore_eos`
BATCH: web.AppKey[Batch] = web.AppKey("batch", Batch)


def application(machine: Machine, slots: int) -> web.Application:
    """Its batch runs as long as it does."""
    app = web.Application()
    batch = Batch(machine, slots)
    app[BATCH] = batch

    async def running(app: web.Application) -> Any:
        async with batch:
            yield

    app.cleanup_ctx.append(running)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/version", _version)
    app.router.add_get("/v1/health/ready", _ready)
    app.router.add_get("/v1/metrics", _metrics)
    app.router.add_post("/v1/chat/completions", _answer)
    app.router.add_post("/v1/completions", _answer)
    return app


def model_name(machine: Machine) -> str:
    return f"simulated-autoregressive-{machine.name}"


async def _models(request: web.Request) -> web.Response:
    name = model_name(request.app[BATCH].machine)
    entry = {"id": name, "object": "model", "owned_by": "dgemma-loadtest", "simulated": name}
    return web.json_response({"object": "list", "data": [entry]})


async def _version(request: web.Request) -> web.Response:
    return web.json_response({"release": __version__, "api": "simulated"})


async def _metrics(request: web.Request) -> web.Response:
    """What load generators read of a simulated service: the metric that says so, as ours has it."""
    machine = request.app[BATCH].machine
    labels = f'precision="{machine.precision}",profile="{machine.name}",simulated="{machine.name}"'
    return web.Response(text=f"dgemma_engine_info{{{labels}}} 1\n")


async def _ready(request: web.Request) -> web.Response:
    return web.json_response({"status": "ready"})


async def _answer(request: web.Request) -> web.StreamResponse:
    try:
        asked = await request.json()
        prompt, wanted = _lengths(asked)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        said = {"message": f"request: {error}", "type": "invalid_request_error"}
        return web.json_response({"error": said}, status=400)
    batch = request.app[BATCH]
    chat = request.path.endswith("/chat/completions")
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": wanted,
        "total_tokens": prompt + wanted,
        "simulated": batch.machine.name,
    }
    head = {"id": f"sim-{random.getrandbits(48):x}", "model": model_name(batch.machine)}
    if not asked.get("stream"):
        async for _ in batch.tokens(prompt, wanted):
            pass
        choice = _choice(chat, WORD * wanted, whole=True) | {"finish_reason": "stop"}
        return web.json_response({**head, "choices": [choice], "usage": usage})
    return await _streamed(request, head, usage, chat)


async def _streamed(
    request: web.Request, head: dict[str, str], usage: dict[str, Any], chat: bool
) -> web.StreamResponse:
    batch, wanted = request.app[BATCH], int(usage["completion_tokens"])
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    kind = "chat.completion.chunk" if chat else "text_completion"
    async for said in batch.tokens(int(usage["prompt_tokens"]), wanted):
        choice = _choice(chat, WORD) | {"finish_reason": "stop" if said == wanted else None}
        await response.write(_event({**head, "object": kind, "choices": [choice]}))
    await response.write(_event({**head, "object": kind, "choices": [], "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    return response


def _choice(chat: bool, text: str, whole: bool = False) -> dict[str, Any]:
    if not chat:
        return {"index": 0, "text": text}
    said = {"role": "assistant", "content": text}
    return {"index": 0, "message" if whole else "delta": said}


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _lengths(asked: dict[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and answer; answers end as the simulated service's do."""
    text = asked.get("prompt")
    if text is None:
        text = "".join(str(message["content"]) for message in asked["messages"])
    most = int(asked.get("max_completion_tokens") or asked.get("max_tokens") or LONGEST)
    if most < 1:
        raise ValueError(f"max_tokens: must be at least 1, got {most}")
    draw = random.Random(asked.get("seed"))
    ends = math.ceil(draw.expovariate(1 / MEAN_ANSWER)) or 1
    wanted = most if asked.get("ignore_eos") else min(most, ends)
    return max(1, len(str(text)) // CHARACTERS), min(wanted, LONGEST)
