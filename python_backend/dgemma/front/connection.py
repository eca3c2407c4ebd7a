"""HTTP connections that give up on clients who do not send, or do not read.

Knows uvicorn's protocol and sockets; knows nothing of requests. What one request may take is
limited elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(read_timeout_s: float, write_timeout_s: float) -> type[H11Protocol]:
    """A protocol class with these limits: uvicorn makes one object of it per connection.

    `read_timeout_s` is what complete headers may take, and `write_timeout_s` how long a client may
    leave unread what was sent to it.
    """

    class Limited(H11Protocol):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._unheard: asyncio.TimerHandle | None = None
            self._unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # For what the kernel holds when we have closed already.
            connection = transport.get_extra_info("socket")
            if connection is not None and connection.family != socket.AF_UNIX:
                limit_ms = min(int(write_timeout_s * 1e3), 2**31 - 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unheard = _stopped(self._unheard)
            self._unread = _stopped(self._unread)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unread is None:
                self._unread = self.loop.call_later(write_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._unread = _stopped(self._unread)
            super().resume_writing()

        def _expect_headers(self) -> None:
            """Start the clock where headers have begun, or nothing has come yet; else stop it."""
            if self.conn.their_state is not h11.IDLE:
                self._unheard = _stopped(self._unheard)
            elif self._unheard is None:
                self._unheard = self.loop.call_later(read_timeout_s, self.transport.abort)

    return Limited


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
