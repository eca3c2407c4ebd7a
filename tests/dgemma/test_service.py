"""Who asks a service, on which threads, and what becomes of requests that fail."""

from __future__ import annotations

import threading
import time

import pytest

from dgemma.errors import EngineFailure, ResourceExhausted, Unavailable
from dgemma.request import RawRequest, Request
from dgemma.service import Service
from tests.dgemma.fake_scheduler import FakeScheduler
from tests.dgemma.hand_made import SAMPLING, annotate, request
from tests.dgemma.service_stage import (
    PATIENCE_S,
    EchoParser,
    Listener,
    in_thread,
    running,
    submitted,
)

# Threads


def test_a_request_gets_its_blocks_and_one_end() -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    with running(scheduler) as service:
        assert submitted(service).end().finish_reason == "stop"


def test_one_thread_owns_the_scheduler_whoever_asks() -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    listeners = [[Listener() for _ in range(20)] for _ in range(8)]
    with running(scheduler) as service:

        def ask(worker: int) -> None:
            for number, listener in enumerate(listeners[worker]):
                service.submit(request(f"{worker}.{number}"), listener)
                if number % 3 == 0:
                    service.cancel(f"{worker}.{number}")

        threads = [in_thread(lambda worker=worker: ask(worker)) for worker in range(8)]
        for thread in threads:
            thread.join()
        reasons = {listener.end().finish_reason for group in listeners for listener in group}
    assert reasons <= {"stop", "cancelled"}
    assert len(scheduler.threads) == 1
    assert threading.get_ident() not in scheduler.threads


def test_a_service_without_requests_sleeps() -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    with running(scheduler) as service:
        submitted(service).end()
        asked = scheduler.asked
        time.sleep(0.05)
        assert scheduler.asked <= asked + 1  # it went to sleep at most
        assert scheduler.steps == 1


def test_whoever_wants_to_know_is_called_after_every_pass() -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    passes: list[int] = []
    with running(scheduler) as service:
        service.after_passes(lambda: passes.append(scheduler.steps))
        for number in range(3):
            submitted(service, str(number)).end()
    assert sorted(set(passes)) == [1, 2, 3]


def test_a_request_is_parsed_on_the_thread_of_who_asks() -> None:
    seen: list[int] = []

    class Parser(EchoParser):
        def parse(self, raw: RawRequest, request_id: str) -> Request:
            seen.append(threading.get_ident())
            return super().parse(raw, request_id)

    service = Service(Parser(), FakeScheduler(), annotate)
    try:
        assert service.parse(RawRequest(text_input=b"x"), "mine").id == "mine"
    finally:
        service.close()
    assert seen == [threading.get_ident()]


def test_an_id_can_be_used_again_only_when_its_request_has_ended() -> None:
    scheduler = FakeScheduler()
    with running(scheduler) as service:
        first = submitted(service, "same")
        with pytest.raises(ValueError, match="request id 'same' is in use"):
            submitted(service, "same")
        scheduler.hold.set()
        first.end()
        assert service.drain(PATIENCE_S)


def test_a_cancelled_request_ends_and_the_one_beside_it_goes_on() -> None:
    scheduler = FakeScheduler()
    with running(scheduler) as service:
        stays, goes = submitted(service, "stays"), submitted(service, "goes")
        service.cancel("goes")
        service.cancel("unknown")
        assert goes.end().finish_reason == "cancelled"
        service.cancel("goes")  # it has ended already
        scheduler.hold.set()
        assert stays.end().finish_reason == "stop"


# Failures


def test_a_failed_pass_ends_its_requests_and_the_service_goes_on() -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    scheduler.step_errors = [RuntimeError("bad pass")]
    with running(scheduler) as service:
        failed = submitted(service, "first").end()
        assert (failed.finish_reason, str(failed.error)) == ("error", "bad pass")
        assert submitted(service, "second").end().finish_reason == "stop"


@pytest.mark.parametrize("error", [ValueError("no room"), EngineFailure("no room")])
def test_a_request_that_cannot_begin_ends_with_an_error(error: Exception) -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    with running(scheduler) as service:
        scheduler.submit_error = error
        end = submitted(service).end()
        assert end.finish_reason == "error"
        assert isinstance(end.error, EngineFailure)
        assert "no room" in str(end.error)
        assert (end.usage.prompt_tokens, end.usage.seed) == (3, SAMPLING.seed)
        assert (end.usage.passes, end.usage.completion_tokens) == (0, 0)
        scheduler.submit_error = None
        assert submitted(service).end().finish_reason == "stop"


def test_a_request_for_which_there_is_no_room_ends_with_just_that() -> None:
    scheduler = FakeScheduler()
    scheduler.submit_error = ResourceExhausted("the queue is full", 1.5)
    with running(scheduler) as service:
        end = submitted(service).end()
    assert end.error is scheduler.submit_error


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), SystemExit(3)])
def test_a_dead_device_thread_leaves_nobody_waiting(error: BaseException) -> None:
    scheduler = FakeScheduler()
    scheduler.ends_requests = False
    with running(scheduler) as service:
        listeners = [submitted(service, str(number)) for number in range(3)]
        for listener in listeners:
            assert listener.began.wait(PATIENCE_S)
        scheduler.step_errors = [error]
        for listener in listeners:
            end = listener.end()
            assert end.finish_reason == "error"
            assert isinstance(end.error, Unavailable)
            assert "the service is dead" in str(end.error)
            assert "restart it" in str(end.error)
        assert service.drain(PATIENCE_S)
        with pytest.raises(Unavailable, match=r"the service is dead .*; restart it"):
            submitted(service)
