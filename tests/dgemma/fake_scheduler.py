"""A scheduler without an engine, for tests of what stands around it."""

from __future__ import annotations

import threading

from dgemma.errors import DgemmaError, EngineFailure
from dgemma.request import Request
from dgemma.scheduler.events import Sink
from dgemma.scheduler.stats import SchedulerStats
from tests.dgemma.hand_made import block, finished


class FakeScheduler:
    """Every step gives each request one block; `hold` keeps requests going until it is opened.

    Records the threads that call it. `step_errors` are raised by the next steps, after the
    requests have ended as the real scheduler ends them, or not where `ends_requests` is False.
    """

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.threads: set[int] = set()
        self.running: dict[str, Sink] = {}
        self.steps = self.asked = 0
        self.step_errors: list[BaseException] = []
        self.submit_error: Exception | None = None
        self.ends_requests = True
        self.blocks = True

    @property
    def busy(self) -> bool:
        self._note()
        self.asked += 1
        return bool(self.running)

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(1, len(self.running), passes_by_rows={1: self.steps})

    def submit(self, request: Request, sink: Sink) -> None:
        self._note()
        if self.submit_error is not None:
            raise self.submit_error
        self.running[request.id] = sink

    def cancel(self, request_id: str) -> None:
        self._note()
        if request_id in self.running:
            self.running.pop(request_id)(finished("cancelled"))

    def step(self) -> bool:
        self._note()
        if not self.running:
            return False
        self.steps += 1
        if self.step_errors:
            error = self.step_errors.pop(0)
            if self.ends_requests:
                self._end("error", EngineFailure(str(error)))
            raise error
        if self.blocks:
            for sink in self.running.values():
                sink(block("x"))
        if self.hold.wait(0.001):
            self._end("stop")
        return True

    def _end(self, reason: str, error: DgemmaError | None = None) -> None:
        for request_id in list(self.running):
            self.running.pop(request_id)(finished(reason, error))

    def _note(self) -> None:
        self.threads.add(threading.get_ident())
