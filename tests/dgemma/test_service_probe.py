"""Probes: a canvas for whoever wants to know whether the engine is well."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgemma.scheduler.tenancy import PROBE
from dgemma.service import Service
from dgemma.tenants.ledger import Ledger
from tests.dgemma.fake_scheduler import FakeScheduler
from tests.dgemma.hand_made import annotate, request
from tests.dgemma.service_stage import (
    PATIENCE_S,
    EchoParser,
    Listener,
    running,
    submitted,
)


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
