from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError, EngineFailure, ResourceExhausted, Unavailable
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.request import RawRequest, Request
from dgemma.roofline.platform import Platform
from dgemma.scheduler.events import Event, Finished
from dgemma.scheduler.tenancy import PROBE, Tenant
from dgemma.service import Service
from dgemma.settings import Settings
from dgemma.simulated.clock import VirtualClock
from dgemma.simulated.device import SimulatedDevice
from dgemma.simulated.simulation import Simulation
from dgemma.tenants.caller import Caller
from dgemma.tenants.days import Days
from dgemma.tenants.ledger import Ledger
from tests.dgemma.fake_scheduler import FakeScheduler
from tests.dgemma.hand_made import SAMPLING, USAGE, annotate, request

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


# Stopping


def test_draining_waits_for_the_open_requests_and_takes_no_more() -> None:
    scheduler = FakeScheduler()
    with running(scheduler) as service:
        listener = submitted(service)
        assert not service.drain(0.01)
        with pytest.raises(Unavailable, match="the service is stopping"):
            submitted(service, "late")
        drained: list[bool] = []
        thread = in_thread(lambda: drained.append(service.drain(PATIENCE_S)))
        scheduler.hold.set()
        thread.join()
        assert drained == [True]
        assert listener.end().finish_reason == "stop"


def test_closing_cancels_what_is_open_and_ends_the_thread() -> None:
    scheduler = FakeScheduler()
    service = Service(EchoParser(), scheduler, annotate)
    listeners = [submitted(service, str(number)) for number in range(4)]
    service.close()
    assert [listener.end().finish_reason for listener in listeners] == ["cancelled"] * 4
    [device] = scheduler.threads
    assert device not in {thread.ident for thread in threading.enumerate()}
    with pytest.raises(Unavailable, match="the service has stopped"):
        submitted(service, "late")


def test_closing_again_and_cancelling_after_it_do_no_harm() -> None:
    service = Service(EchoParser(), FakeScheduler(), annotate)
    service.close()
    service.cancel("x")
    service.close()
    assert service.drain(0.0)


def test_every_request_has_one_end_however_submitting_and_closing_interleave() -> None:
    for _ in range(6):
        scheduler = FakeScheduler()
        scheduler.blocks = False
        service = Service(EchoParser(), scheduler, annotate)
        taken: list[Listener] = []

        def submit_until_refused(
            name: str, service: Service = service, taken: list[Listener] = taken
        ) -> None:
            for number in range(10_000):
                try:
                    taken.append(submitted(service, f"{name}.{number}"))
                except Unavailable:
                    return

        threads = [in_thread(lambda n=name: submit_until_refused(n)) for name in "ab"]
        service.close()
        for thread in threads:
            thread.join()
        for listener in taken:
            listener.end()


# Start-up


def test_a_service_that_cannot_load_its_checkpoint_says_which_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_MODEL_PATH", str(tmp_path))
    monkeypatch.setenv("DGEMMA_CHECKPOINT", str(tmp_path))
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/.*config.json: no such file"):
        Service.from_settings(Settings.load())


# Who asks, and what it cost them


class Doorkeeper:
    def __init__(self) -> None:
        self.closed = False

    def identify(self, authorization: str | None) -> Caller:
        return Caller(Tenant(str(authorization)))

    def close(self) -> None:
        self.closed = True


def test_every_end_of_a_request_is_written_down_for_its_tenant(tmp_path: Path) -> None:
    scheduler, door = FakeScheduler(), Doorkeeper()
    service = Service(EchoParser(), scheduler, annotate, door=door, ledger=Ledger(tmp_path))

    def ask(request_id: str, tenant: str) -> Listener:
        listener = Listener()
        parsed = service.identify(tenant).claim(service.parse(RawRequest(), request_id))
        service.submit(parsed, listener)
        return listener

    scheduler.hold.set()
    assert ask("1", "acme").end().finish_reason == "stop"
    scheduler.submit_error = ResourceExhausted("the queue is full", 2.0)
    assert ask("2", "acme").end().error is scheduler.submit_error
    scheduler.submit_error = None
    scheduler.hold.clear()
    cancelled = ask("3", "b")
    assert cancelled.began.wait(PATIENCE_S)
    service.close()
    assert cancelled.end().finish_reason == "cancelled"
    assert door.closed
    used = Days(tmp_path).usage()
    assert {name: (t.requests, t.rejected, t.failed) for name, t in used.items()} == {
        "acme": (2, 1, 0),
        "b": (1, 0, 0),
    }
    assert used["b"].completion_tokens == USAGE.completion_tokens


# Beside the passes


def test_what_follows_a_pass_is_done_while_the_device_has_the_next_one() -> None:
    """Where one follows: after the last pass nobody would come for it."""
    scheduler, later, called = FakeScheduler(), list[Callable[[], object]](), threading.Event()
    service = Service(EchoParser(), scheduler, annotate, meanwhile=later.append)
    service.after_passes(called.set)
    listener = submitted(service)
    assert listener.began.wait(PATIENCE_S)
    while not later:
        time.sleep(0.001)
    assert not called.is_set()
    later[0]()
    assert called.is_set()
    called.clear()
    scheduler.hold.set()
    listener.end()
    assert called.wait(PATIENCE_S)
    service.close()


def test_what_was_simulated_says_so() -> None:
    platform = Platform.named("h100-fp8", named_geometry(DEFAULT))
    simulation = Simulation(platform, SimulatedDevice(VirtualClock()))
    scheduler = FakeScheduler()
    service = Service(EchoParser(), scheduler, annotate, simulation=simulation)
    scheduler.hold.set()
    usage = submitted(service).end().usage
    service.close()
    assert usage == replace(USAGE, simulated="h100-fp8-published")
    assert json.loads(usage.to_json())["simulated"] == "h100-fp8-published"
    assert "simulated" not in json.loads(USAGE.to_json())


# Probes


def probe(service: Service, request_id: str = "p") -> Listener:
    listener, caller = Listener(), service.identify("Bearer of-the-supervisor")
    service.submit(caller.claim(request(request_id)), listener)
    return listener


@contextmanager
def probed(scheduler: FakeScheduler, **options: Any) -> Iterator[Service]:
    service = Service(EchoParser(), scheduler, annotate, probe_key="of-the-supervisor", **options)
    try:
        yield service
    finally:
        scheduler.hold.set()
        service.close()


def test_an_idle_engine_answers_a_probe_with_a_request_of_its_own() -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    with probed(scheduler) as service:
        assert probe(service).end().finish_reason == "stop"
    assert scheduler.steps == 1


def test_a_busy_engine_answers_a_probe_with_the_next_pass_and_no_slot() -> None:
    scheduler = FakeScheduler()
    with probed(scheduler) as service:
        busy = submitted(service)
        assert busy.began.wait(PATIENCE_S)
        assert probe(service).end().usage.passes == 0
        assert list(scheduler.running) == ["r"]
        assert not busy.ended.is_set()


def test_a_pass_that_fails_answers_no_probe() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Breaking(FakeScheduler):
        def step(self) -> bool:
            if self.steps == 0:
                entered.set()
                assert go_on.wait(PATIENCE_S)
            elif self.steps == 1:
                self.hold.set()  # afterwards requests end at once
                self.step_errors = [RuntimeError("broken")]
            return super().step()

    with probed(scheduler := Breaking()) as service:
        broken = submitted(service)
        assert entered.wait(PATIENCE_S)
        waiting = probe(service)
        go_on.set()
        assert broken.end().finish_reason == "error"
        assert waiting.end().finish_reason == "stop", "it was run itself"
    assert scheduler.steps == 3


def test_a_probe_needs_its_key() -> None:
    with probed(FakeScheduler()) as service:
        assert service.identify("Bearer of-the-supervisor").tenant is PROBE
        for wrong in (None, "", "Bearer ", "Bearer of-the-supervisors", "Bearer \udcff"):
            assert service.identify(wrong).tenant is not PROBE
    with running(FakeScheduler()) as service:
        assert service.identify("Bearer None").tenant is not PROBE


def test_no_usage_is_kept_of_a_probe(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    scheduler.hold.set()
    with probed(scheduler, ledger=Ledger(tmp_path / "ledger")) as service:
        probe(service).end()
        submitted(service).end()
    written = "".join(path.read_text() for path in (tmp_path / "ledger").glob("*.jsonl"))
    assert '"default"' in written
    assert '"probe"' not in written
