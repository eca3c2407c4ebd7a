from __future__ import annotations

import time

import pytest

import dgemma.simulated.metrics as metrics
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.platform import Platform
from dgemma.simulated.clock import VirtualClock
from dgemma.simulated.device import SimulatedDevice
from dgemma.simulated.simulation import Simulation
from tests.dgemma import fake_pb_utils as pb

PATIENCE_S = 20.0


def test_what_the_device_has_done_is_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "EVERY_S", 0.001)
    pb.MetricFamily.made.clear()
    platform = Platform.named("h100-fp8", named_geometry(DEFAULT))
    device = SimulatedDevice(VirtualClock())
    device.run(lambda: 2.5)
    device.clock.wait_until(device.clock() + 1.0)
    device.run(lambda: 0.5)
    watching = metrics.DeviceMetrics(pb, Simulation(platform, device))
    made = {metric.labels["state"]: metric for _, metric in pb.MetricFamily.made}
    assert {name for name, _ in pb.MetricFamily.made} == {metrics.NAME}
    assert {metric.labels["simulated"] for metric in made.values()} == {"h100-fp8-published"}
    deadline = time.monotonic() + PATIENCE_S
    while made["starved"].value != 1.0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    watching.close()
    assert {state: metric.value for state, metric in made.items()} == {
        "busy": 3.0,
        "idle": 1.0,
        "starved": 1.0,
    }
