"""The thread that brings the metrics up to date, twice a second.

Knows when and from where; the arithmetic is beside it. Whoever has something to tell leaves it in a
queue and goes on: that is all that the device thread pays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

from dgemma.errors import DgemmaError
from dgemma.metrics.engine import engine_info, profile_info
from dgemma.metrics.exporter import Exporter
from dgemma.metrics.passes import PassMetrics
from dgemma.metrics.requests import RequestMetrics
from dgemma.request import Request
from dgemma.scheduler.events import Block, Finished
from dgemma.service import Service

logger = logging.getLogger(__name__)

EVERY_S = 0.5
DEVICE = "dgemma_simulated_device_seconds"


class Metrics:
    """Those of one service, from before its first request until `close`."""

    def __init__(self, exporter: Exporter, service: Service, model: str) -> None:
        """`model` is the name that the model is served by."""
        self._to, self._service = exporter, service
        self._requests = RequestMetrics(exporter, model)
        self._passes = PassMetrics(exporter, model)
        self._told: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closing = threading.Event()
        if service.selection is not None:
            exporter.set("dgemma_profile_info", 1, *profile_info(service.selection))
            info = engine_info(service.selection, service.simulation)
            exporter.set("dgemma_engine_info", 1, *info)
        service.tell(self._tell)
        self._update()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def refused(self, error: DgemmaError) -> None:
        """A request has not reached the service, for this reason; from any thread."""
        self._told.put(partial(self._requests.refused, error))

    def close(self) -> None:
        """Take note of all that has happened, end the thread and what is exported."""
        self._closing.set()
        self._thread.join()
        self._to.close()

    def _tell(self, request: Request, event: Block | Finished) -> None:
        if isinstance(event, Block):
            self._told.put(partial(self._requests.block, request, event))
        else:
            self._told.put(partial(self._requests.end, request, event))

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(EVERY_S)
            self._update()

    def _update(self) -> None:
        self._attempt(self._look)
        try:
            while True:
                self._attempt(self._told.get_nowait())
        except Empty:
            return

    def _attempt(self, note: Callable[[], None]) -> None:
        """What cannot be noted is missing then, and nothing else is."""
        try:
            note()
        except Exception:
            logger.exception("the metrics could not be brought up to date")

    def _look(self) -> None:
        self._passes.look(self._service.stats)
        if (simulation := self._service.simulation) is not None:
            spent = simulation.device.spent
            for state in ("busy", "idle", "starved"):
                self._to.set(DEVICE, getattr(spent, state), simulation.name, state)
