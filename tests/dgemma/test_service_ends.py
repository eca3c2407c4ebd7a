"""How a service starts and stops, and what it does besides passes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError, ResourceExhausted, Unavailable
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.request import RawRequest
from dgemma.roofline.platform import Platform
from dgemma.scheduler.tenancy import Tenant
from dgemma.service import Service
from dgemma.settings import Settings
from dgemma.simulated.clock import VirtualClock
from dgemma.simulated.device import SimulatedDevice
from dgemma.simulated.simulation import Simulation
from dgemma.tenants.caller import Caller
from dgemma.tenants.days import Days
from dgemma.tenants.ledger import Ledger
from tests.dgemma.fake_scheduler import FakeScheduler
from tests.dgemma.hand_made import USAGE, annotate
from tests.dgemma.service_stage import (
    PATIENCE_S,
    EchoParser,
    Listener,
    in_thread,
    running,
    submitted,
)

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
