"""Generates text on a DiffusionGemma server, over Triton's streaming gRPC call.

Knows channels, deadlines and cancellation; knows nothing of how text is displayed, and needs only
the light install. The model answers any number of times per request, so Triton's unary `infer`
cannot serve it and is never used.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from dgemma.channels import Channels
from dgemma.client_errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerFailure,
    Unauthenticated,
    Unavailable,
    from_message,
    from_rpc_error,
)
from dgemma.kserve import (
    RequestOptions,
    StreamMode,
    Update,
    decode_response,
    encode_request,
)

__all__ = [
    "Cancelled",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Generation",
    "Overloaded",
    "RequestOptions",
    "RequestRejected",
    "ServerFailure",
    "Unauthenticated",
    "Unavailable",
    "Update",
    "gather",
    "generate",
    "stream",
]

DEFAULT_URL = "localhost:8001"
DEFAULT_TIMEOUT_S = 300.0
MAX_TIMEOUT_S = 86_400.0  # every request has a deadline
_LONGEST_PAUSE_S = 5.0  # between two attempts

_HOST_AND_PORT = re.compile(r"[^\s/]+:[0-9]{1,5}")
_API_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Generation:
    """A whole answer. `token_ids` are filled when the request set `return_token_ids`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # stop or length
    usage: dict[str, Any]  # tokens, steps per block, passes, seed and times in milliseconds


class Client:
    """A channel to one server, for any number of requests, one after another or in threads.

    `url` is host:port of the gRPC endpoint. `tls_ca`, a PEM file of authorities, makes it a TLS
    channel; `credentials` do so too, where more is to be said. `api_key` goes with every request,
    and in clear where there is no TLS. Nothing is sent before the first request; an unreachable
    server shows there, as Unavailable.

    For `retry_for_s` after its first failure a request that met with Unavailable is sent again, by
    a new connection, if nothing of its answer has come: after the time that the error names, then
    twice as long, up to 5 s, each time a random half less; never beyond its `timeout_s`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        tls_ca: str | Path | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retry_for_s: float = 0.0,
    ) -> None:
        if retry_for_s < 0:
            raise RequestRejected(f"retry_for_s: must be 0 or more seconds, got {retry_for_s}")
        if not _HOST_AND_PORT.fullmatch(url):
            raise RequestRejected(
                f"url: must be HOST:PORT of the gRPC endpoint, such as {DEFAULT_URL}; got {url!r}"
            )
        if tls_ca is not None:
            if credentials is not None:
                raise RequestRejected("tls_ca: give either tls_ca or credentials")
            credentials = _trusting(Path(tls_ca))
        if api_key is not None and not _API_KEY.fullmatch(api_key):
            raise RequestRejected("api_key: must be printable ASCII without spaces")
        self._metadata = None if api_key is None else (("authorization", f"Bearer {api_key}"),)
        self.url = url
        self._retry_for_s = retry_for_s
        self._channels = Channels(url, credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; requests still running on it are cancelled."""
        self._channels.close()

    def stream(
        self,
        prompt: str | None = None,
        *,
        stream: StreamMode = "block",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **options: Unpack[RequestOptions],
    ) -> Generator[Update, None, None]:
        """Yields updates as the server sends them; the last one is of kind `final`.

        `prompt` is raw text, sent without a chat template. `stream` chooses what comes before the
        final update: nothing, one update per block, or also one per denoise step. The request is
        sent when iteration begins. Leaving the loop early closes the generator, which cancels the
        request on the server. `timeout_s` is also the request's `deadline_s`, unless that is given:
        so the server can refuse at once what would come too late.

        Raises RequestRejected at the call where no message can carry the request, and a
        ClientError while iterating for everything else.
        """
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise RequestRejected(
                f"timeout_s: must be above 0 and at most {MAX_TIMEOUT_S:g} seconds, got {timeout_s}"
            )
        if options.get("deadline_s") is None:
            options["deadline_s"] = timeout_s
        return self._updates(encode_request(prompt, stream, options), timeout_s)

    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """The whole answer at once; options and errors as for `stream`."""
        return gather(self.stream(prompt, stream="none", timeout_s=timeout_s, **options))

    def _updates(self, request: Any, timeout_s: float) -> Generator[Update, None, None]:
        """Those of the first attempt that the server takes."""
        until = time.monotonic() + timeout_s
        failed_at: float | None = None
        pause_s = 0.0
        while True:
            begun = False
            try:
                for update in self._attempt(request, until - time.monotonic(), timeout_s):
                    begun = True
                    yield update
                return
            except Unavailable as error:
                now = time.monotonic()
                failed_at = now if failed_at is None else failed_at
                pause_s = min(max(error.retry_after_s, 2 * pause_s), _LONGEST_PAUSE_S)
                wait_s = pause_s * random.uniform(0.5, 1)
                last = min(until, failed_at + self._retry_for_s)
                if begun or now + wait_s > last:
                    raise
            time.sleep(wait_s)

    def _attempt(
        self, request: Any, left_s: float, timeout_s: float
    ) -> Generator[Update, None, None]:
        """`left_s` is what is left of `timeout_s`."""
        with self._channels.one() as channel:
            call = channel.infer(request, timeout=left_s, metadata=self._metadata)
            try:
                for message in call:
                    if message.error_message:
                        _await_end(call)
                        raise from_message(message.error_message, url=self.url, timeout_s=timeout_s)
                    update = decode_response(message.infer_response)
                    if update is None:
                        continue
                    if update.kind == "final":
                        _await_end(call)  # the caller may leave as soon as it has this update
                        yield update
                        return
                    yield update
                raise ServerFailure("the stream ended without a final response")
            except grpc.RpcError as error:
                explained = from_rpc_error(error, url=self.url, timeout_s=timeout_s)
                if isinstance(explained, Unavailable):
                    self._channels.renew(channel)
                raise explained from None
            except Unavailable:
                self._channels.renew(channel)
                raise
            finally:
                call.cancel()  # has no effect on a stream that has ended


def _trusting(authorities: Path) -> grpc.ChannelCredentials:
    """Credentials that trust these authorities and no others."""
    try:
        pem = authorities.read_bytes()
    except OSError as error:
        raise RequestRejected(f"tls_ca: cannot read {authorities}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise RequestRejected(f"tls_ca: {authorities} holds no certificate in PEM form")
    return grpc.ssl_channel_credentials(pem)


def _await_end(call: Any) -> None:
    """Lets Triton end a finished stream by itself: a model whose streams are cancelled at that
    point never unloads.
    """
    with suppress(grpc.RpcError):
        for _ in call:
            pass


def gather(updates: Iterable[Update]) -> Generation:
    """The whole answer from a stream of updates, whatever its mode."""
    text: list[str] = []
    token_ids: list[int] = []
    final: Update | None = None
    for update in updates:
        if update.kind != "draft":
            text.append(update.text)
            token_ids.extend(update.token_ids)
        if update.kind == "final":
            final = update
    if final is None:
        raise ServerFailure("the updates ended without a final one")
    return Generation("".join(text), tuple(token_ids), final.finish_reason or "", final.usage or {})


def stream(
    prompt: str | None = None,
    *,
    url: str = DEFAULT_URL,
    api_key: str | None = None,
    tls_ca: str | Path | None = None,
    stream: StreamMode = "block",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    **options: Unpack[RequestOptions],
) -> Generator[Update, None, None]:
    """`Client.stream` over a channel of its own; for many requests, hold a Client."""
    with Client(url, api_key=api_key, tls_ca=tls_ca) as client:
        updates = client.stream(prompt, stream=stream, timeout_s=timeout_s, **options)
        with closing(updates):
            yield from updates


def generate(
    prompt: str | None = None,
    *,
    url: str = DEFAULT_URL,
    api_key: str | None = None,
    tls_ca: str | Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    **options: Unpack[RequestOptions],
) -> Generation:
    """`Client.generate` over a channel of its own; for many requests, hold a Client."""
    with Client(url, api_key=api_key, tls_ca=tls_ca) as client:
        return client.generate(prompt, timeout_s=timeout_s, **options)
