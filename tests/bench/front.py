"""What the HTTP front adds to a block: `python -m tests.bench.front`.

32 streams get a block of 1 kB every 100 ms from a server that does nothing else, once over gRPC and
once over HTTP. A block says when it was sent, so that its way can be timed at its end; server,
front and client are processes of their own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc.aio
import httpx2
from tritonclient.grpc import service_pb2_grpc

from dgemma.front.server import running
from dgemma.front.settings import FrontSettings
from dgemma.front.triton import Question, Triton
from tests.dgemma.fake_triton import final, response

STREAMS = 32
BLOCKS = 30  # each
EVERY_S = 0.1
TEXT = "x" * 1000
PROMISED_MS = 5.0


class Metronome(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Sends every stream its blocks at even intervals, at different times for different streams."""

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        async for _ in requests:
            break
        began = time.monotonic()
        for index in range(BLOCKS):
            await asyncio.sleep(max(0.0, began + (index + 1) * EVERY_S - time.monotonic()))
            yield response("block", f"{time.monotonic_ns()} {TEXT}", block_index=index)
        yield final()


def serve_grpc(ready: Connection) -> None:
    async def serve() -> None:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Metronome(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(serve())


def serve_http(ready: Connection, triton_url: str) -> None:
    settings = FrontSettings.load(triton_url=triton_url, host="127.0.0.1", port=0)
    with running(settings) as server:
        ready.send(server.url)
        time.sleep(3600)


def age_ms(text: str) -> float:
    return (time.monotonic_ns() - int(text.partition(" ")[0])) / 1e6


async def over_grpc(url: str) -> list[float]:
    triton = Triton(url)
    ages: list[float] = []

    async def one(index: int) -> None:
        await asyncio.sleep(index * EVERY_S / STREAMS)
        async for update in triton.ask(Question("p", {}, "block", 60.0)):
            if update.kind == "block":
                ages.append(age_ms(update.text))

    await asyncio.gather(*map(one, range(STREAMS)))
    await triton.close()
    return ages


async def over_http(url: str) -> list[float]:
    ages: list[float] = []

    async def one(client: httpx2.AsyncClient, index: int) -> None:
        await asyncio.sleep(index * EVERY_S / STREAMS)
        fields = {"messages": [{"role": "user", "content": "p"}], "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=fields) as answered:
            async for line in answered.aiter_lines():
                _, found, rest = line.partition('"delta":{"content":"')
                if found and rest[:1].isdigit():
                    ages.append(age_ms(rest))

    limits = httpx2.Limits(max_connections=STREAMS)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*(one(client, index) for index in range(STREAMS)))
    return ages


def measured(way: Callable[[str], Coroutine[Any, Any, list[float]]], url: str) -> float:
    """The median, once warm."""
    asyncio.run(way(url))
    ages = asyncio.run(way(url))
    assert len(ages) >= STREAMS * (BLOCKS - 1)
    quantiles = statistics.quantiles(ages, n=100)
    print(f"{way.__name__}: median {quantiles[49]:.2f} ms, 99 % {quantiles[98]:.2f} ms")
    return quantiles[49]


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """The gRPC server's address and the front's; both have ended after the block."""
    context = multiprocessing.get_context("spawn")

    with ExitStack() as stack:

        def started(target: Callable[..., None], *arguments: str) -> str:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            url: str = ours.recv()
            return url

        triton_url = started(serve_grpc)
        yield triton_url, started(serve_http, triton_url)


def added_ms() -> float:
    """By how much the front's median is longer."""
    with servers() as (triton_url, front_url):
        return measured(over_http, front_url) - measured(over_grpc, triton_url)


def main() -> None:
    added = added_ms()
    verdict = "kept" if added <= PROMISED_MS else "MISSED"
    print(f"the front adds {added:.2f} ms to a block, promised {PROMISED_MS:g} ms: {verdict}")


if __name__ == "__main__":
    main()
