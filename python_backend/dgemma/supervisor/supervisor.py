"""Process 1: does what the machine decides.

Knows signals, tasks and the clock; what to do when is `dgemma.supervisor.machine`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.supervisor import orphans, sign
from dgemma.supervisor.events import (
    Announce,
    Began,
    Event,
    Exit,
    Failed,
    Kill,
    Part,
    Report,
    Start,
    Stop,
    StopAsked,
    Tick,
)
from dgemma.supervisor.machine import Machine
from dgemma.supervisor.parts import Supervised

logger = logging.getLogger(__name__)

TICK_S = 0.1
_SIGN_EVERY_S = 0.4
_LONGEST_STEP_S = 1.0


class LivedTime:
    """Seconds that this process has lived through; when all stood still, no part is at fault."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last, self._lived = clock, clock(), 0.0

    def __call__(self) -> float:
        now = self._clock()
        self._lived += min(now - self._last, _LONGEST_STEP_S)
        self._last = now
        return self._lived


class Supervisor:
    """Runs parts until the machine says that it is over."""

    def __init__(
        self,
        machine: Machine,
        parts: Mapping[Part, Supervised],
        *,
        status: Path,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        drain_delay_s: float = 0.0,
    ) -> None:
        """`status` is the file that readiness is announced in; how often each part was started
        stands beside it. `on_ready` is called whenever the service has become ready, and `on_stop`
        once, when the first part is asked to end.
        """
        self._machine, self._parts, self._status = machine, parts, status
        self._on_ready, self._on_stop, self._drain_delay_s = on_ready, on_stop, drain_delay_s
        self._clock = LivedTime()
        # Events, and of those of a part the watch that has told them.
        self._events: asyncio.Queue[tuple[Part | None, int, Event]] = asyncio.Queue()
        self._watches: dict[Part, asyncio.Task[None]] = {}
        self._lives: dict[Part, int] = dict.fromkeys(parts, 0)
        self._starts: Counter[Part] = Counter()
        self._ready = self._stopping = False
        self._words, self._signed_at = "the service is starting", -float("inf")

    async def run(self) -> Exit:
        """Start everything; returns when everything has ended."""
        orphans.adopt()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._signalled, self._drain_delay_s)
        loop.add_signal_handler(signal.SIGINT, self._signalled, 0.0)  # a person does not wait
        try:
            self._events.put_nowait((None, 0, Began()))
            while True:
                for action in self._machine.handle(await self._event(), self._clock()):
                    if isinstance(action, Exit):
                        return action
                    self._act(action)
                self._give_sign()
                orphans.bury([pid for part in self._parts.values() if (pid := part.pid())])
        finally:
            for part in self._parts:
                self._kill(part)
            orphans.bury([])
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def _event(self) -> Event:
        """The next one; what a part told before it was killed is dropped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                while True:
                    part, life, event = await self._events.get()
                    if part is None or life == self._lives[part]:
                        return event
        return Tick()

    def _signalled(self, delay_s: float) -> None:
        self._events.put_nowait((None, 0, StopAsked(delay_s)))

    def _act(self, action: Start | Stop | Kill | Announce | Report) -> None:
        match action:
            case Start(part):
                self._start(part)
            case Stop(part):
                if not self._stopping:
                    self._stopping = True
                    self._on_stop()
                self._parts[part].stop()
            case Kill(part):
                self._kill(part)
            case Report(message):
                logger.error("%s", message)
            case Announce(ready, why):
                self._words, self._signed_at = why, -float("inf")
                self._give_sign()  # before anything else is done
                if ready:
                    self._on_ready()
                elif self._ready:
                    logger.warning("not ready: %s", why)
                self._ready = ready

    def _start(self, part: Part) -> None:
        self._lives[part] += 1
        self._starts[part] += 1
        with suppress(OSError):
            words = " ".join(f"{name}={count}" for name, count in self._starts.items())
            sign.give(self._status.with_name(sign.STARTS), words)
        tell = partial(self._told, part, self._lives[part])
        try:
            self._parts[part].start()
        except ConfigurationError as error:
            tell(Failed(part, str(error), for_good=True))
            return
        except OSError as error:  # no more processes or files
            tell(Failed(part, f"it cannot be started: {error}"))
            return
        self._watches[part] = asyncio.create_task(self._watch(part, tell))

    async def _watch(self, part: Part, tell: Callable[[Event], None]) -> None:
        try:
            await self._parts[part].watch(tell)
        except Exception as error:
            logger.exception("%s cannot be watched", part)
            tell(Failed(part, f"it cannot be watched: {error!r}"))

    def _told(self, part: Part, life: int, event: Event) -> None:
        self._events.put_nowait((part, life, event))

    def _kill(self, part: Part) -> None:
        if watch := self._watches.pop(part, None):
            watch.cancel()
        self._lives[part] += 1
        self._parts[part].kill()

    def _give_sign(self) -> None:
        now = time.monotonic()
        if now - self._signed_at >= _SIGN_EVERY_S:
            self._signed_at = now
            with suppress(OSError):  # a full disk: the sign grows old, which says enough
                sign.give(self._status, self._words)
