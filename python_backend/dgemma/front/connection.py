"""HTTP connections that give up on clients who do not send, or do not read.

Knows uvicorn's protocol and sockets; knows nothing of requests. What one request may take is
limited elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
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
            self._unheard = _Alarm(read_timeout_s)
            self._unread = _Alarm(write_timeout_s)

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
            self._unheard.clear()
            self._unread.clear()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread.set(self.transport.abort)

        def resume_writing(self) -> None:
            self._unread.clear()
            super().resume_writing()

        def _expect_headers(self) -> None:
            """Start the clock where headers have begun, or nothing has come yet; else stop it."""
            if self.conn.their_state is h11.IDLE:
                self._unheard.set(self.transport.abort)
            else:
                self._unheard.clear()

    return Limited


class _Alarm:
    """Calls something once, `seconds` after it was set, unless it is cleared before."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def set(self, action: Callable[[], None]) -> None:
        """Has no effect while it is set."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, action)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
