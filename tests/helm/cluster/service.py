"""A Service of a cluster: an address whose connections go to pods that are ready.

Knows TCP as kube-proxy does: where a connection begins is where it stays; without a pod it is
refused. Knows nothing of what is said on one.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.helm.cluster.machine import new_address
from tests.helm.cluster.pod import Pod

# From a pod's end to the last node that has heard of it: what preStop waits for.
LAG_S = 1.0
_RESET = struct.pack("ii", 1, 0)
_CHUNK = 1 << 16


class Service:
    """Listens from `__enter__` to `__exit__`; `pods` gives those that there are at a moment."""

    def __init__(self, pods: Callable[[], Iterable[Pod]], ports: tuple[int, ...] = (8000, 8001)):
        self._pods, self._ports = pods, ports
        self.address = new_address(ports)
        self.refused = 0
        self._left: dict[str, float] = {}  # when a pod that was listed was seen no more to be ready
        self._listed: dict[str, Pod] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service")
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Service:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def endpoints(self) -> list[Pod]:
        """Pods that are ready, and for a moment those that were."""
        now = time.monotonic()
        for pod in self._pods():
            if pod.serving:
                self._listed[pod.name] = pod
                self._left.pop(pod.name, None)
        for name, pod in list(self._listed.items()):
            if not pod.serving and now - self._left.setdefault(name, now) > LAG_S:
                del self._listed[name]
        return list(self._listed.values())

    async def _open(self) -> None:
        for port in self._ports:
            self._servers.append(
                await asyncio.start_server(self._connected(port), self.address, port)
            )
        self._tasks.add(self._loop.create_task(self._watch()))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Endpoints change also while nobody connects."""
        while True:
            self.endpoints()
            await asyncio.sleep(0.05)

    def _connected(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._carry(port, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return begin

    async def _carry(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        endpoints = self.endpoints()
        try:
            if not endpoints:
                raise ConnectionRefusedError
            address = random.choice(endpoints).address
            theirs, to_pod = await asyncio.open_connection(address, port)
        except OSError:
            self.refused += 1
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, to_pod), _pump(theirs, writer))
        finally:
            for end in (writer, to_pod):
                end.close()


async def _pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_CHUNK):
            to.write(data)
            await to.drain()
    with suppress(OSError):
        if to.can_write_eof():
            to.write_eof()
