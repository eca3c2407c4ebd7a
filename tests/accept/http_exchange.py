"""One HTTP request on a connection of its own, byte by byte, and what may come back.

Knows connections and errors' shape; knows nothing of why a request is what it is.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import h11

WAIT_S = 60.0  # for one answer
# What is said on purpose: nothing else of the kind.
INTENDED = ((502, "malformed_tool_call"), (503, "unavailable"), (504, "timeout"))


@dataclass(frozen=True)
class Asked:
    """What is written on a connection of its own."""

    content: bytes
    method: str = "POST"
    is_http: bool = True  # else it may be closed without an answer


@dataclass
class Answered:
    """What came back; `status` is 0 where the connection was closed without an answer."""

    status: int = 0
    complete: bool = False
    content: bytearray = field(default_factory=bytearray)

    def wrong(self, asked: Asked) -> str:
        """What may not be; empty where all is well."""
        if self.status == 0:
            return "closed without an answer" if asked.is_http else ""
        if not self.complete:
            return f"{self.status}, broken off"
        if self.status < 400 or asked.method == "HEAD":
            return ""
        try:
            error = json.loads(bytes(self.content))["error"]
        except (ValueError, KeyError, TypeError):
            # What is not HTTP, uvicorn refuses in its own words.
            plain = self.status == 400 and self.content.startswith(b"Invalid HTTP request")
            return "" if plain else f"{self.status} without an error object"
        if not error["message"]:
            return f"{self.status} without a message"
        if self.status >= 500 and (self.status, error["code"]) not in INTENDED:
            return f"{self.status} {error['message'][:80]}"
        return ""


class Exchange(asyncio.Protocol):
    """Writes at once, and reads until the answer is complete or the connection is closed."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self.answered = asked, Answered()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = h11.Connection(h11.CLIENT)
        # What it believes to have sent decides how it reads.
        method = "HEAD" if asked.method == "HEAD" else "POST"
        self._reader.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._reader.send(h11.EndOfMessage())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._asked.content)

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        self._reader.receive_data(data)
        self._read()

    def eof_received(self) -> None:
        if not self.done.done():
            self._reader.receive_data(b"")
            self._read()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _read(self) -> None:
        while not self.done.done():
            try:
                event = self._reader.next_event()
            except h11.RemoteProtocolError:  # no answer, or half of one
                self.done.set_result(None)
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Response):
                self.answered.status = event.status_code
            elif isinstance(event, h11.Data):
                self.answered.content += event.data
            elif not isinstance(event, h11.InformationalResponse):
                self.answered.complete = isinstance(event, h11.EndOfMessage)
                self.done.set_result(None)


async def exchange(host: str, port: int, asked: Asked) -> Answered | None:
    """The answer; None where there is none within `WAIT_S`."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(lambda: Exchange(asked), host, port)
    try:
        await asyncio.wait_for(protocol.done, WAIT_S)
    except TimeoutError:
        return None
    finally:
        transport.abort()
    return protocol.answered
