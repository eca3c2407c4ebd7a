"""The service over gRPC: Triton's ModelStreamInfer, by grpc.aio.

Knows channels, keys and how a stream ends; what its messages mean is `contract`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dgemma_loadtest.clock import Clock
from dgemma_loadtest.errors import InputError, TargetError
from dgemma_loadtest.jobs import Job
from dgemma_loadtest.run_file import Server
from dgemma_loadtest.targets.base import CONNECT_TIMEOUT_S, Answer, Connection, End, Piece
from dgemma_loadtest.targets.contract import MODEL, decode, encode

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else all channels of a process share a connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # a retry would be measured as one slow request
)


class TritonTarget:
    """`address` is HOST:PORT; `tls` speaks TLS, trusting `ca` or what the system trusts."""

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        keys: Mapping[str, str] | None = None,
        model: str = MODEL,
        tls: bool = False,
        ca: Path | None = None,
    ) -> None:
        self.url = f"grpc{'s' * tls}://{address}"
        self._address, self._clock, self._model = address, clock, model
        self._keys = dict(keys or {})
        self._credentials = grpc.ssl_channel_credentials(_pem(ca)) if tls else None
        self._open: list[TritonConnection] = []

    async def connect(self, count: int) -> list[Connection]:
        made = [TritonConnection(self._channel(), self._model, self._clock, self._keys)
                for _ in range(count)]  # fmt: skip
        self._open += made
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.gather(*(connection.ready() for connection in made))
        except TimeoutError:
            raise TargetError(
                "UNAVAILABLE", f"no server answers at {self.url} within {CONNECT_TIMEOUT_S:g} s"
            ) from None
        return list(made)

    async def describe(self) -> Server:
        async with self._channel() as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                said = await stub.ServerMetadata(
                    service_pb2.ServerMetadataRequest(), timeout=CONNECT_TIMEOUT_S
                )
                return Server("triton", said.name or None, said.version or None, self._model)
            except grpc.aio.AioRpcError as error:
                return Server("triton", model=self._model, more={"error": error.details()})

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()
        self._open.clear()

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=OPTIONS)
        return grpc.aio.secure_channel(self._address, self._credentials, options=OPTIONS)


class TritonConnection:
    """One channel with a connection of its own."""

    def __init__(
        self, channel: grpc.aio.Channel, model: str, clock: Clock, keys: Mapping[str, str]
    ) -> None:
        self._channel, self._model, self._clock, self._keys = channel, model, clock, keys
        # Bytes, so that their time is taken before they are parsed.
        self._stream = channel.unary_stream(METHOD)

    async def ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self) -> None:
        await self._channel.close()

    async def ask(self, job: Job) -> Answer:
        call = self._stream(
            encode(job, self._model),
            timeout=job.timeout_s,
            metadata=authorization(self._keys.get(job.tenant)),
        )
        try:
            while (content := await call.read()) is not grpc.aio.EOF:
                at_s = self._clock.now()
                reply = decode(content)
                if reply is None or reply.kind == "draft":
                    continue
                if reply.kind != "final" or reply.characters:
                    yield Piece(at_s, reply.characters, "block", reply.block, reply.steps)
                if reply.kind == "final":
                    await _drained(call)
                    yield End(at_s, reply.finish_reason, reply.usage)
                    return
            raise TargetError("INTERNAL", "the stream ended without a final response")
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from None
            raise TargetError(error.code().name, error.details() or "") from None
        finally:
            call.cancel()  # has no effect on a stream that has ended


def authorization(key: str | None) -> tuple[tuple[str, str], ...] | None:
    return None if key is None else (("authorization", f"Bearer {key}"),)


async def _drained(call: Any) -> None:
    """Lets Triton end a finished stream by itself, as it asks its clients to."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass


def _pem(ca: Path | None) -> bytes | None:
    if ca is None:
        return None
    try:
        return ca.read_bytes()
    except OSError as error:
        raise InputError(f"tls-ca: cannot read {ca}: {error.strerror}") from None
