"""A server that answers with latencies it has drawn and writes down what it really did.

It speaks the service's gRPC contract and OpenAI's server-sent events, in a process of its own, and
computes nothing. Times in its log are of the machine's monotonic clock. A prompt may hold a word
that says what is to go wrong: REFUSE, FAIL, BREAK (off), HANG.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TextIO

import grpc
import grpc.aio
import numpy as np
from aiohttp import web
from tritonclient.grpc import service_pb2

CANVAS, CONTEXT = 64, 4096
TEXT = "x" * 40


@dataclass
class Truth:
    """What is drawn for each answer, and the log of what was done."""

    first_ms: float  # median until the first block; log-normal
    block_ms: float  # median between blocks; log-normal
    sigma: float
    blocks: int  # of an answer, at most: 1 to this many
    log: TextIO
    rng: np.random.Generator
    keys: frozenset[str] = frozenset()
    open: int = 0

    def plan(self) -> list[float]:
        """Seconds before each block."""
        count = int(self.rng.integers(1, self.blocks + 1))
        middles = np.array([self.first_ms, *[self.block_ms] * (count - 1)]) / 1e3
        gaps: list[float] = (middles * np.exp(self.sigma * self.rng.normal(size=count))).tolist()
        return gaps

    async def blocks_of(self, text: str) -> AsyncIterator[tuple[int, int]]:
        """Number and steps of each block, when it is due; the log is written at the end."""
        received, sent, gaps, ended = time.monotonic(), [], self.plan(), "left"
        self.open += 1
        try:
            for number, gap in enumerate(gaps):
                await asyncio.sleep(gap)
                if number and "BREAK" in text:
                    return
                if "HANG" in text:
                    await asyncio.sleep(3600)
                sent.append(time.monotonic())
                yield number, 4 + number
            ended = "whole"
        finally:
            self.open -= 1
            entry = {"received": received, "sent": sent, "planned": gaps, "ended": ended}
            self.log.write(json.dumps(entry) + "\n")


def usage(count: int) -> dict[str, Any]:
    steps = [4 + number for number in range(count)]
    return {
        "prompt_tokens": 20,
        "completion_tokens": 40 * count,
        "committed_tokens": CANVAS * count,
        "denoising_steps": steps,
        "cap_hits": 0,
        "passes": sum(steps) + 1,
        "prefill_chunks": 1,
        "cached_tokens": 0,
        "service_units": sum(steps) + count,
        "queue_ms": 0.0,
        "simulated": "truth",
    }


def response(kind: str, text: str, block: int, steps: int, said: str = "", reason: str = "") -> Any:
    message = service_pb2.ModelInferResponse(model_name="diffusion_gemma")
    for name, value in (
        *(("kind", kind), ("text_output", text)),
        *(("finish_reason", reason), ("usage", said)),
    ):
        message.outputs.add(name=name, datatype="BYTES", shape=[1])
        message.raw_output_contents.append(struct.pack("<I", len(value)) + value.encode())
    for name, number in (("block_index", block), ("denoising_step", steps)):
        message.outputs.add(name=name, datatype="INT32", shape=[1])
        message.raw_output_contents.append(struct.pack("<i", number))
    message.parameters["triton_final_response"].bool_param = kind == "final"
    return service_pb2.ModelStreamInferResponse(infer_response=message)


def refusal(said: str) -> Any:
    return service_pb2.ModelStreamInferResponse(error_message=said)


def prompt_of(request: Any) -> tuple[str, dict[str, Any]]:
    """The prompt's text, and the sampling parameters."""
    tensors = {
        tensor.name: raw[4:].decode()
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    text = json.loads(tensors["messages"])[0]["content"]
    return text, json.loads(tensors.get("sampling_parameters", "{}"))


class Grpc(grpc.GenericRpcHandler):
    """ModelStreamInfer and ServerMetadata."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        match details.method:
            case "/inference.GRPCInferenceService/ModelStreamInfer":
                return grpc.stream_stream_rpc_method_handler(
                    self._stream,
                    service_pb2.ModelInferRequest.FromString,
                    service_pb2.ModelStreamInferResponse.SerializeToString,
                )
            case "/inference.GRPCInferenceService/ServerMetadata":
                return grpc.unary_unary_rpc_method_handler(
                    self._metadata,
                    service_pb2.ServerMetadataRequest.FromString,
                    service_pb2.ServerMetadataResponse.SerializeToString,
                )
        return None

    async def _metadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="truth", version="1")

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            text, sampling = prompt_of(request)
            given = dict(context.invocation_metadata()).get("authorization", "")
            if self._truth.keys and given.removeprefix("Bearer ") not in self._truth.keys:
                yield refusal("[UNAUTHENTICATED] authorization: no key of a tenant")
                return
            if sampling.get("max_new_tokens", 1) > CONTEXT:
                allowed = f"allowed: an integer from 1 to max_model_len (here {CONTEXT})"
                yield refusal(f"[INVALID_ARGUMENT] sampling_parameters.max_new_tokens: {allowed}")
                return
            if "REFUSE" in text:
                yield refusal("[RESOURCE_EXHAUSTED] the queue is full; retry after 0.05 s")
                return
            if "FAIL" in text:
                await context.abort(grpc.StatusCode.INTERNAL, "it was asked to fail")
            count = 0
            async for number, steps in self._truth.blocks_of(text):
                count += 1
                yield response("block", TEXT, number, steps)
            if "BREAK" in text:
                return
            said = json.dumps(usage(count))
            yield response("final", "", count - 1, 3 + count, said, "stop")


def http(truth: Truth) -> web.Application:
    """Chat completions and what a client asks before."""

    async def models(request: web.Request) -> web.Response:
        entry = {"id": "truth", "owned_by": "tests", "max_model_len": CONTEXT}
        return web.json_response({"data": [entry]})

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][0]["content"]
        if "REFUSE" in text:
            return web.json_response(
                {"error": {"message": "full"}}, status=429, headers={"Retry-After": "1"}
            )
        if "FAIL" in text:
            return web.json_response({"error": {"message": "failed"}}, status=500)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)

        async def say(**content: Any) -> None:
            await answer.write(b"data: " + json.dumps(content).encode() + b"\n\n")

        await say(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        count = 0
        async for _ in truth.blocks_of(text):
            count += 1
            await say(choices=[{"index": 0, "delta": {"content": TEXT}}])
        if "BREAK" in text:
            return answer
        await say(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        counted = {"prompt_tokens": 20, "completion_tokens": 40 * count}
        await say(choices=[], usage=counted)
        await answer.write(b"data: [DONE]\n\n")
        return answer

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    return app


async def serve(options: argparse.Namespace) -> None:
    with open(options.log, "w", encoding="utf-8", buffering=1) as log:
        truth = Truth(
            options.first_ms,
            options.block_ms,
            options.sigma,
            options.blocks,
            log,
            np.random.default_rng(options.seed),
            frozenset(options.key),
        )
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers((Grpc(truth),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        runner = web.AppRunner(http(truth), access_log=None, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        # A server whose loop does nothing: requests wait in the sockets.
        loop.add_signal_handler(signal.SIGUSR1, time.sleep, options.stall_s)
        (http_port,) = (socket.getsockname()[1] for socket in site._server.sockets)
        print(port, http_port, flush=True)
        await stop.wait()
        await server.stop(0.5)
        await runner.cleanup()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--first-ms", type=float, default=20.0)
    parser.add_argument("--block-ms", type=float, default=10.0)
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stall-s", type=float, default=1.0)
    parser.add_argument("--key", action="append", default=[])
    return parser


if __name__ == "__main__":
    asyncio.run(serve(arguments().parse_args()))
    sys.exit(0)
