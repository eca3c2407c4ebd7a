"""A generator's process beside a process of Locust: commands go in, what it says comes out.

Knows pipes and greenlets; knows nothing of what records mean.
"""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent.event import Event

from dgemma_loadtest.driver import ended, started
from dgemma_loadtest.generator.order import COMMAND, ORDER, Command, Order

FINISH_S = 20.0
READY_S = 300.0  # a server may have much to do before its first answer
logger = logging.getLogger(__name__)


class Bridge:
    """Runs from `__init__`, which returns when the target has answered, to `finish`; every event is
    `hear`'s, in a greenlet.
    """

    def __init__(self, order: Order, hear: Callable[[dict[str, Any]], None]) -> None:
        self._hear, self._users, self._over = hear, 0, False
        self._process: subprocess.Popen[bytes] = started()
        self._write(ORDER.dump_json(order))
        self._ready = Event()
        self._reader = gevent.spawn(self._read)
        self._ready.wait(READY_S)

    def start(self, stage: str, load: str, first: int = 0) -> int:
        """One more user; its number, from `first` on."""
        self._users += 1
        number = first + self._users
        self.command(Command("start", user=number, load=load, stage=stage))
        return number

    def command(self, command: Command) -> None:
        if not self._over:
            self._write(COMMAND.dump_json(command))

    def finish(self) -> None:
        """End all requests and wait until all has been heard; once is enough."""
        self.command(Command("end"))
        self._over = True
        self._reader.join(FINISH_S)
        ended(self._process)

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # the reader says that it has gone
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            event = json.loads(line)
            last = event["event"]
            self._hear(event)
            self._ready.set()
        if last not in ("done", "error"):
            said = f"the generator's process ended with {self._process.poll()}"
            self._hear({"event": "error", "message": said})
            self._ready.set()
