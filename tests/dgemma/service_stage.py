"""Services on a fake scheduler, and who asks them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dgemma.request import RawRequest, Request
from dgemma.scheduler.events import Event, Finished
from dgemma.service import Service
from tests.dgemma.fake_scheduler import FakeScheduler
from tests.dgemma.hand_made import annotate, request

PATIENCE_S = 20.0


class EchoParser:
    def parse(self, raw: RawRequest, request_id: str) -> Request:
        return request(request_id)


class Listener:
    """A sink that remembers; `ended` is set by the last event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.began.set()
        if isinstance(event, Finished):
            self.ended.set()

    def end(self) -> Finished:
        """The last event; it is the only one of its kind and nothing follows it."""
        assert self.ended.wait(PATIENCE_S), "no last event has come"
        ends = [event for event in self.events if isinstance(event, Finished)]
        assert len(ends) == 1
        assert self.events[-1] is ends[0]
        return ends[0]


@contextmanager
def running(scheduler: FakeScheduler) -> Iterator[Service]:
    service = Service(EchoParser(), scheduler, annotate)
    try:
        yield service
    finally:
        scheduler.hold.set()
        service.close()


def submitted(service: Service, request_id: str = "r") -> Listener:
    listener = Listener()
    service.submit(request(request_id), listener)
    return listener


def in_thread(action: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread
