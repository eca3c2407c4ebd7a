"""The pipes of a generator's process, read and written without ever holding up its loop."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from contextlib import suppress

_PIPE_BYTES = 1 << 20
_LINE_BYTES = 1 << 24  # an order holds a whole scenario


class Pipes:
    """Lines from standard input, lines to standard output. Open it within a running loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.WriteTransport) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls) -> Pipes:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        with suppress(OSError, AttributeError):
            fcntl.fcntl(sys.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
        return cls(reader, writer)

    async def line(self) -> bytes:
        """The next line without its end; empty where the other side has gone."""
        return (await self._reader.readline()).rstrip(b"\n")

    def send(self, line: bytes) -> None:
        """Kept in memory until the other side reads it."""
        if not self._writer.is_closing():
            self._writer.write(line)

    async def close(self) -> None:
        """When the other side has all of it, or has gone."""
        while self._writer.get_write_buffer_size() and not self._writer.is_closing():
            await asyncio.sleep(0.01)
        self._writer.close()
