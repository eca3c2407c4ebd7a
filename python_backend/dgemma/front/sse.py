"""Server-sent events, and work that ends when the client has gone.

Knows the ASGI messages of a stream and of a client that leaves; knows nothing of what is streamed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
# What nginx says of a client that has gone; nobody reads it but the log.
CLIENT_GONE = 499
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has closed its connection."""


def json_bytes(value: object) -> bytes:
    """JSON in UTF-8. Half a character, which UTF-8 has no form for, is written as its escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def event(value: object) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes. Raises ClientGone.

    The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Streams chunks as they come and closes their source when the client has gone.

    `failed` gives the last event of a stream whose source raised.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        failed: Callable[[Exception], bytes],
        first: bytes = b"",
    ) -> None:
        super().__init__(
            status_code=HTTPStatus.OK,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._chunks, self._failed, self._first = chunks, failed, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._stream(send))
        except ClientGone:
            pass
        finally:
            await self._chunks.aclose()

    async def _stream(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        await _send(send, self._first)
        try:
            async for chunk in self._chunks:
                await _send(send, chunk)
        except Exception as error:
            await _send(send, self._failed(error))
        await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
