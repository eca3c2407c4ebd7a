from __future__ import annotations

import threading

import pytest

from dgemma.errors import DeadlineExceeded, InvalidRequest, Unavailable
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.metrics import metrics as module
from dgemma.metrics.exporter import TritonExporter
from dgemma.metrics.families import FAMILIES, OUTCOMES
from dgemma.metrics.metrics import DEVICE, Metrics
from dgemma.profiles.selection import Refusal, Selection
from dgemma.roofline.platform import Platform
from dgemma.service import Service
from dgemma.simulated.clock import VirtualClock
from dgemma.simulated.device import SimulatedDevice
from dgemma.simulated.simulation import Simulation
from tests.dgemma import fake_pb_utils as pb
from tests.dgemma.fake_scheduler import FakeScheduler
from tests.dgemma.hand_made import USAGE, annotate, request
from tests.dgemma.metrics.book import Book
from tests.dgemma.test_service import PATIENCE_S, EchoParser, Listener

MODEL = "demo"


def simulation() -> Simulation:
    platform = Platform.named("h100-fp8", named_geometry(DEFAULT))
    device = SimulatedDevice(VirtualClock())
    device.run(lambda: 2.5)
    device.clock.wait_until(device.clock() + 1.0)
    device.run(lambda: 0.5)
    return Simulation(platform, device)


def test_what_the_service_does_arrives_when_it_is_looked_at() -> None:
    scheduler, book = FakeScheduler(), Book()
    scheduler.hold.set()
    service = Service(EchoParser(), scheduler, annotate)
    metrics = Metrics(book, service, MODEL)
    listener = Listener()
    service.submit(request("r"), listener)
    listener.end()
    service.close()
    metrics.refused(InvalidRequest("seed", "no"))
    metrics.close()
    assert book.counts["dgemma_requests_total", "stop"] == 1
    assert book.counts["dgemma_requests_total", "invalid"] == 1
    assert book.counts["prompt_tokens_total", MODEL] == USAGE.prompt_tokens
    assert book.counts["dgemma_passes_total", "1"] == 1
    assert len(book.observed["dgemma_denoising_steps",]) == 1


def test_what_cannot_be_noted_keeps_nothing_else_from_being(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Torn(Book):
        def add(self, name: str, amount: float, *labels: str) -> None:
            if labels == ("unavailable",) and amount:
                raise RuntimeError("Triton does not answer")
            super().add(name, amount, *labels)

    book, service = Torn(), Service(EchoParser(), FakeScheduler(), annotate)
    metrics = Metrics(book, service, MODEL)
    metrics.refused(Unavailable("starting"))
    metrics.refused(InvalidRequest("seed", "no"))
    metrics.close()
    service.close()
    assert book.counts["dgemma_requests_total", "invalid"] == 1
    assert "Triton does not answer" in caplog.text


def test_the_thread_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    noted = threading.Event()

    class Waiting(Book):
        def add(self, name: str, amount: float, *labels: str) -> None:
            super().add(name, amount, *labels)
            if labels == ("late",) and amount:
                noted.set()

    service = Service(EchoParser(), FakeScheduler(), annotate)
    metrics = Metrics(Waiting(), service, MODEL)
    for _ in range(3):
        noted.clear()
        metrics.refused(DeadlineExceeded("late"))
        assert noted.wait(PATIENCE_S)
    metrics.close()
    service.close()


def test_what_is_simulated_is_marked_and_its_device_s_time_told() -> None:
    sim = simulation()
    name = f"simulated-{sim.name}"
    selection = Selection(name, name, "none", None, "simulated", "asked for")
    service = Service(
        *(EchoParser(), FakeScheduler(), annotate), selection=selection, simulation=sim
    )
    book = Book()
    Metrics(book, service, MODEL).close()
    service.close()
    assert book.labels("dgemma_engine_info") == {
        (name, "sm90", "fp8", "never verified", "h100-fp8-published")
    }
    assert {
        state: book.gauges[DEVICE, sim.name, state] for state in ("busy", "idle", "starved")
    } == {
        "busy": 3.0,
        "idle": 1.0,
        "starved": 1.0,
    }


def test_the_profile_says_what_it_fell_back_from() -> None:
    sim = simulation()
    missed = (Refusal("cpu-fp32", "damaged"), Refusal("cpu-fp8", "damaged"))
    selection = Selection("abc", "cpu-int4", "/e", None, "rev", "why", missed)
    service = Service(
        *(EchoParser(), FakeScheduler(), annotate), selection=selection, simulation=sim
    )
    book = Book()
    Metrics(book, service, MODEL).close()
    service.close()
    assert book.gauges["dgemma_profile_info", "cpu-int4", "abc", "rev", "true", "cpu-fp32"] == 1


def test_triton_is_told_each_value_under_its_labels() -> None:
    pb.MetricFamily.made.clear()
    exporter = TritonExporter(pb, FAMILIES)
    plain = {name for name, _ in pb.MetricFamily.made}
    assert plain == {family.name for family in FAMILIES if not family.labels}
    for _ in range(2):
        exporter.add("dgemma_requests_total", 2, OUTCOMES[0])
        exporter.add("dgemma_requests_total", 0, OUTCOMES[1])
        exporter.set("num_requests_running", 3, MODEL)
        exporter.observe("dgemma_queue_wait_seconds", 0.5, "acme")
    made = [(name, m) for name, m in pb.MetricFamily.made if name not in plain]
    assert [(name, m.labels, m.value, m.observed) for name, m in made] == [
        ("dgemma_requests_total", {"outcome": OUTCOMES[0]}, 4.0, []),
        ("dgemma_requests_total", {"outcome": OUTCOMES[1]}, 0.0, []),
        ("num_requests_running", {"model_name": MODEL}, 3.0, []),
        ("dgemma_queue_wait_seconds", {"tenant": "acme"}, 0.0, [0.5, 0.5]),
    ]
    with pytest.raises(ValueError):
        exporter.add("dgemma_requests_total", 1)


def test_every_kind_of_metric_can_be_made() -> None:
    exporter = TritonExporter(pb, FAMILIES)
    for family in FAMILIES:
        labels = ["x"] * len(family.labels)
        {"counter": exporter.add, "gauge": exporter.set, "histogram": exporter.observe}[
            family.kind
        ](family.name, 1.0, *labels)
