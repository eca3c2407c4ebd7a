from __future__ import annotations

import pytest

from dgemma.simulated.clock import VirtualClock
from dgemma.simulated.device import DeviceTime, SimulatedDevice


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture
def device(clock: VirtualClock) -> SimulatedDevice:
    return SimulatedDevice(clock)


def test_work_takes_its_time(clock: VirtualClock, device: SimulatedDevice) -> None:
    device.run(lambda: 2.0)
    device.run(lambda: 1.5)
    assert clock() == 103.5
    assert device.spent == DeviceTime(busy=3.5)
    assert device.spent.starved_share == 0.0


def test_a_device_starves_while_the_host_does_something_else(
    clock: VirtualClock, device: SimulatedDevice
) -> None:
    device.run(lambda: 3.0)
    clock.now += 1.0
    device.run(lambda: 3.0)
    assert device.spent == DeviceTime(busy=6.0, idle=1.0, starved=1.0)
    assert device.spent.starved_share == pytest.approx(1 / 7)


def test_without_anything_to_do_it_does_not(clock: VirtualClock, device: SimulatedDevice) -> None:
    device.run(lambda: 3.0)
    clock.now += 10.0
    arrived = clock()
    device.wanted_since = lambda: arrived
    clock.now += 0.5
    device.run(lambda: 1.0)
    assert device.spent == DeviceTime(busy=4.0, idle=10.5, starved=0.5)


def test_what_came_while_it_worked_is_wanted_from_its_end(
    clock: VirtualClock, device: SimulatedDevice
) -> None:
    device.wanted_since = lambda: 101.0
    device.run(lambda: 3.0)
    clock.now += 0.25
    device.run(lambda: 1.0)
    assert device.spent.starved == 0.25


def test_a_beginning_is_no_idleness(clock: VirtualClock, device: SimulatedDevice) -> None:
    clock.now += 60.0
    device.run(lambda: 1.0)
    assert device.spent == DeviceTime(busy=1.0)


def test_to_work_out_how_long_takes_none_of_its_time(
    clock: VirtualClock, device: SimulatedDevice
) -> None:
    def slowly() -> float:
        clock.now += 0.5
        return 2.0

    device.run(slowly)
    assert clock() == 102.0


def test_what_the_host_does_meanwhile_takes_none_either(
    clock: VirtualClock, device: SimulatedDevice
) -> None:
    seen: list[str] = []

    def call(name: str) -> None:
        seen.append(name)
        clock.now += 0.25

    device.meanwhile(lambda: call("first"))
    device.meanwhile(lambda: call("second"))
    assert seen == []
    device.run(lambda: 2.0)
    assert (seen, clock()) == (["first", "second"], 102.0)
    device.run(lambda: 1.0)
    assert (seen, device.spent) == (["first", "second"], DeviceTime(busy=3.0))


def test_work_that_cannot_begin_is_none(clock: VirtualClock, device: SimulatedDevice) -> None:
    def refused() -> float:
        raise ValueError("no")

    device.run(lambda: 1.0)
    with pytest.raises(ValueError, match="no"):
        device.run(refused)
    assert device.spent == DeviceTime(busy=1.0)


def test_what_came_since() -> None:
    assert DeviceTime(5.0, 3.0, 1.0) - DeviceTime(2.0, 1.0, 0.5) == DeviceTime(3.0, 2.0, 0.5)
