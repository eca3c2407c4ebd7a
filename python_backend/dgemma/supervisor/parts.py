"""The parts that are supervised, as processes: how each starts, lives and ends.

Knows what a sign of life is; decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Protocol

from dgemma.cli_exit import BAD_INPUT
from dgemma.client_errors import ClientError
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.front.health import ONE_CANVAS, PROBE_ID
from dgemma.front.triton import Question, Triton
from dgemma.supervisor import sign
from dgemma.supervisor.events import Alive, Ended, Event, Failed, Part, Up
from dgemma.triton_server import with_parent
from dgemma.triton_server.processes import kill_session
from dgemma.triton_server.server import TritonServer
from dgemma.triton_server.tls import Tls

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
PROBE_EVERY_S = 0.5
# The C library would keep what large bodies took, the more threads the longer.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
_PROBE_TIMEOUT_S = 86_400.0  # who does not answer is killed before, and nothing is cancelled

Tell = Callable[[Event], None]


class Supervised(Protocol):
    """One part. `start` comes first, and again after a `kill`."""

    def start(self) -> None:
        """Begin to start; raises ConfigurationError."""

    async def watch(self, tell: Tell) -> None:
        """Tell how it fares from then on, until it fails or has ended."""

    def stop(self) -> None:
        """Ask it to finish what is in flight and to end."""

    def kill(self) -> None:
        """End it at once, with whatever it leaves."""

    def pid(self) -> int | None:
        """Of the process that is a child of ours."""


class TritonPart:
    """The server; it lives while it answers probes, and dies with any of its models' processes."""

    def __init__(self, server: TritonServer, probe_key: str, tls: Tls | None) -> None:
        self.server, self._tls = server, tls
        self._question = Question(
            "x", ONE_CANVAS, "none", _PROBE_TIMEOUT_S, PROBE_ID, f"Bearer {probe_key}"
        )
        self._stopping = False
        self._trouble = ""

    def start(self) -> None:
        self._stopping, self._trouble = False, ""
        self.server.launch()

    async def watch(self, tell: Tell) -> None:
        try:
            while not await asyncio.to_thread(self.server.ready):
                await asyncio.sleep(LOOK_EVERY_S)
        except ConfigurationError as error:
            tell(Failed(Part.TRITON, str(error), for_good=True))
            return
        probing = asyncio.create_task(self._probe(tell))
        try:
            while not self._stopping:
                self.server.check()
                await asyncio.sleep(LOOK_EVERY_S)
        except EngineFailure as error:
            tell(Failed(Part.TRITON, str(error)))
            return
        finally:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
        while not self.server.ended():
            await asyncio.sleep(LOOK_EVERY_S)
        self.server.kill()  # what it has left
        tell(Ended(Part.TRITON))

    def stop(self) -> None:
        self._stopping = True
        self.server.terminate()

    def kill(self) -> None:
        self.server.kill()

    def pid(self) -> int | None:
        return None if self.server.ended() else self.server.pid

    async def _probe(self, tell: Tell) -> None:
        triton = Triton(self.server.grpc_url, tls=self._tls)
        answer: Event = Up(Part.TRITON)
        try:
            while True:
                began = time.monotonic()
                if await self._answers(triton):
                    tell(answer)
                    answer = Alive(Part.TRITON)
                await asyncio.sleep(max(LOOK_EVERY_S, began + PROBE_EVERY_S - time.monotonic()))
        finally:
            await triton.close()

    async def _answers(self, triton: Triton) -> bool:
        """Whether a canvas has been denoised, or a pass been run where others keep it busy."""
        try:
            async with aclosing(triton.ask(self._question)) as updates:
                async for _ in updates:
                    pass
        except ClientError as error:
            if self._trouble != error.message:
                self._trouble = error.message
                logger.warning("a probe failed: %s", error.message)
            return False
        self._trouble = ""
        return True


class FrontPart:
    """The HTTP front, in a process of its own; it lives while its event loop goes on."""

    def __init__(self, env: Mapping[str, str], directory: Path, log: int | None) -> None:
        """`env` is added to ours; `directory` is the supervisor's, where signs are left."""
        self._env = {**_ALLOCATOR, **os.environ, **env, "DGEMMA_SUPERVISED": str(directory)}
        self._sign, self._log = directory / sign.FRONT, log
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def start(self) -> None:
        self._stopping = False
        self._sign.unlink(missing_ok=True)
        output = sys.stderr.fileno() if self._log is None else self._log
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", with_parent.__file__, str(os.getpid())),
                *(sys.executable, "-P", "-m", "dgemma", "front"),
            ],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal reaches us alone
        )

    async def watch(self, tell: Tell) -> None:
        assert self._process is not None
        last: sign.Sign | None = None
        while (code := self._process.poll()) is None:
            found = sign.read(self._sign)
            if found is not None and found != last:
                tell(Up(Part.FRONT) if last is None else Alive(Part.FRONT))
                last = found
            await asyncio.sleep(LOOK_EVERY_S)
        if self._stopping:
            tell(Ended(Part.FRONT))
        else:
            how = f"ended with code {code}; its output is above"
            tell(Failed(Part.FRONT, how, for_good=code == BAD_INPUT))

    def stop(self) -> None:
        self._stopping = True
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            kill_session(process.pid)
            process.wait()

    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid
