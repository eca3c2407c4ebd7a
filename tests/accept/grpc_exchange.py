"""One gRPC call with the bytes of one message, and how it may end.

Knows calls, statuses and the texts of errors; knows nothing of why a message is what it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from dgemma.kserve import CHANNEL_OPTIONS

SERVICE = "/inference.GRPCInferenceService/"
STREAM, UNARY = "ModelStreamInfer", "ModelInfer"
# How the service refuses a request. Triton does in words of its own, without a status.
REFUSED = re.compile(
    r"\[(INVALID_ARGUMENT|UNAUTHENTICATED|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|UNAVAILABLE)\] .+",
    re.DOTALL,
)
SERVICE_FAILED = re.compile(r"\[[A-Z_]+\] |Traceback|Error: |Exception", re.DOTALL)
# Of Triton and of gRPC, for what is no message or asks for what there is not.
STATUSES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}
WAIT_S = 60.0  # for one answer
# Of gRPC itself, for more metadata than it takes: it may refuse from so many bytes on.
LARGE, TOO_LARGE = 8 * 1024, {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}


@dataclass(frozen=True)
class Asked:
    """One message of one call."""

    content: bytes
    method: str = STREAM
    metadata: tuple[tuple[str, str], ...] = ()
    is_message: bool = True  # else its call may end without a response

    @property
    def metadata_bytes(self) -> int:
        return sum(len(key) + len(value) for key, value in self.metadata)


@dataclass(frozen=True)
class Answered:
    """How a call ended."""

    status: grpc.StatusCode
    said: str  # with a status other than OK
    error: str | None  # of the response; None where there was none
    responses: int

    def wrong(self, asked: Asked) -> str:
        """What may not be; empty where all is well."""
        if self.status in TOO_LARGE and asked.metadata_bytes > LARGE:
            return ""
        if asked.is_message and self.status not in STATUSES:
            return f"{self.status.name} {self.said[:100]}"
        ended = self.status is grpc.StatusCode.OK and asked.method == STREAM
        if asked.is_message and ended and not self.responses:
            return "ended without a response"
        error = self.error or ""
        if SERVICE_FAILED.search(error) and not REFUSED.match(error):
            return error[:100]
        return ""


def open_channel(url: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(url, options=CHANNEL_OPTIONS)


async def exchange(channel: grpc.aio.Channel, asked: Asked) -> Answered | None:
    """How the call ended; None where it has not within `WAIT_S`."""
    if asked.method != STREAM:
        return await _call(channel, asked)
    call = channel.stream_stream(
        SERVICE + STREAM,
        request_serializer=bytes,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )(iter([asked.content]), timeout=WAIT_S, metadata=asked.metadata or None)
    error: str | None = None
    responses = 0
    try:
        async for message in call:
            responses += 1
            error = message.error_message or error
    except grpc.RpcError:
        pass
    return _ended(await call.code(), str(await call.details() or ""), error, responses)


async def _call(channel: grpc.aio.Channel, asked: Asked) -> Answered | None:
    call = channel.unary_unary(SERVICE + asked.method, request_serializer=bytes)(
        asked.content, timeout=WAIT_S, metadata=asked.metadata or None
    )
    return _ended(await call.code(), str(await call.details() or ""), None, 0)


def _ended(code: Any, said: str, error: str | None, responses: int) -> Answered | None:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return None
    return Answered(code, said, error, responses)
