"""Requests to Triton over one grpc.aio channel.

Knows the stream, its deadline and its cancellation; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from dgemma.client_errors import (
    DeadlineExceeded,
    ServerFailure,
    Unavailable,
    from_message,
    from_rpc_error,
)
from dgemma.kserve import (
    CHANNEL_OPTIONS,
    STREAM_INFER,
    StreamMode,
    Update,
    decode_response,
    encode_request,
)
from dgemma.triton_server.tls import Tls

# Triton is on this machine and may be started anew; gRPC would wait longer and longer, up to two
# minutes, before it looks again.
_RECONNECT = tuple(
    (f"grpc.{which}_reconnect_backoff_ms", milliseconds)
    for which, milliseconds in (("initial", 100), ("min", 100), ("max", 500))
)


@dataclass(frozen=True)
class Question:
    """What is sent to the service: a prompt, or options that hold one, and who asks."""

    prompt: str | None
    options: Mapping[str, Any]
    stream: StreamMode
    timeout_s: float
    request_id: str = ""
    authorization: str | None = None  # the header as it came
    names: dict[str, str] = field(default_factory=dict)  # inputs as the client's body calls them

    def with_options(self, **options: Any) -> Question:
        return replace(self, options={**self.options, **options})


class Triton:
    """The way to the service. `on_update` is called for everything that it answers."""

    def __init__(
        self,
        url: str,
        on_update: Callable[[], None] = lambda: None,
        tls: Tls | None = None,
    ) -> None:
        """With `tls`, which is the server's own, it is spoken to over TLS."""
        self.url, self._on_update = url, on_update
        self._ending: set[asyncio.Future[None]] = set()
        options = (*CHANNEL_OPTIONS, *_RECONNECT)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(url, options=options)
        else:
            self._channel = grpc.aio.secure_channel(
                url, tls.credentials(), options=(*options, *tls.channel_options)
            )
        self._infer = self._channel.unary_stream(
            STREAM_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    def reachable(self) -> bool:
        """Whether a request would be sent, and not refused while gRPC waits to connect again."""
        state = self._channel.get_state(try_to_connect=True)
        return state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def close(self) -> None:
        """Requests still running are cancelled."""
        await self._channel.close()

    async def ask(self, question: Question) -> AsyncGenerator[Update, None]:
        """Updates as they come; the last one is of kind `final`.

        Closing the generator, or cancelling the task that waits for it, cancels the request.
        Raises a ClientError.
        """
        request = encode_request(question.prompt, question.stream, question.options)
        request.id = question.request_id
        metadata = question.authorization and (("authorization", question.authorization),)
        call = self._infer(request, timeout=question.timeout_s, metadata=metadata or None)
        ended = False
        try:
            async for message in call:
                if message.error_message:
                    ended = True
                    await self._end(call)
                    raise from_message(
                        message.error_message, url=self.url, timeout_s=question.timeout_s
                    )
                update = decode_response(message.infer_response)
                if update is None:
                    continue
                self._on_update()
                if update.kind == "final":
                    # Triton must end a finished stream by itself: a model whose streams are
                    # cancelled at that point never unloads.
                    ended = True
                    await self._end(call)
                    yield update
                    return
                yield update
            raise ServerFailure("the stream ended without a final response")
        except grpc.RpcError as error:
            raise self._explained(error, question.timeout_s) from None
        finally:
            if not ended:
                call.cancel()

    async def _end(self, call: Any) -> None:
        """Lets Triton end a finished stream by itself, whatever becomes of us meanwhile: a model
        whose streams are cancelled at that point never unloads.
        """
        ending = asyncio.ensure_future(_until_end(call))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    def _explained(self, error: Any, timeout_s: float) -> Exception:
        # What the gRPC core says of addresses is for operators, and clients are others.
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return Unavailable("the model server does not answer; it may be starting or stopping")
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"no complete answer within {timeout_s:g} s; ask for fewer tokens"
            )
        return from_rpc_error(error, url="the model server", timeout_s=timeout_s)


async def _until_end(call: Any) -> None:
    with suppress(grpc.RpcError):
        async for _ in call:
            pass
