from __future__ import annotations

import pytest
import torch

from dgemma.engine.base import Capacity, Row
from dgemma.engine.simulated_engine import SimulatedEngine
from dgemma.errors import EngineFailure
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.platform import Platform
from dgemma.roofline.sizes import kv_bytes
from dgemma.simulated.clock import VirtualClock
from dgemma.simulated.device import SimulatedDevice

GEOMETRY = named_geometry(DEFAULT)
L = GEOMETRY.canvas_length
IDS = torch.zeros(L, dtype=torch.int64)
H100 = Platform.named("h100-fp8", GEOMETRY)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def engine(clock: VirtualClock) -> SimulatedEngine:
    return SimulatedEngine(H100, Capacity(4, 262144, 8), SimulatedDevice(clock))


def encode(slot: int, start: int, partner: int = -1) -> Row:
    return Row(IDS, slot, start, L, denoise=False, partner=partner)


def denoise(slot: int, start: int, partner: int = -1) -> Row:
    return Row(IDS, slot, start, L, denoise=True, partner=partner)


def test_a_pass_takes_what_the_platform_says(engine: SimulatedEngine, clock: VirtualClock) -> None:
    began = clock()
    hidden = engine.forward([encode(0, 0), denoise(0, L, partner=0), denoise(1, 0)])
    assert clock() - began == pytest.approx(H100.pass_s([0, L, 0], 2))
    assert len(hidden) == 3 and hidden.numel() == 0


def test_long_contexts_take_longer_and_no_memory(
    engine: SimulatedEngine, clock: VirtualClock
) -> None:
    began = clock()
    for start in range(0, 131072, L):
        engine.forward([encode(0, start)])
    chunks = clock() - began
    engine.forward([denoise(0, 131072)])
    assert clock() - began - chunks == pytest.approx(H100.pass_s([131072], 1))
    assert chunks == pytest.approx(sum(H100.pass_s([n], 0) for n in range(0, 131072, L)))


def test_a_row_that_does_not_continue_its_slot_is_refused(engine: SimulatedEngine) -> None:
    engine.forward([encode(0, 0)])
    with pytest.raises(EngineFailure, match="slot 0 holds 256 tokens, a row reads 512"):
        engine.forward([denoise(0, 2 * L)])
    with pytest.raises(EngineFailure, match="slot 1 holds 0 tokens, a row reads 256"):
        engine.forward([encode(1, L), denoise(1, 2 * L, partner=0)])
    engine.forward([denoise(0, L)])
    engine.forward([denoise(0, 0)])  # another request begins there


def test_a_pass_that_was_refused_has_changed_nothing(
    engine: SimulatedEngine, clock: VirtualClock
) -> None:
    began = clock()
    with pytest.raises(EngineFailure, match="1 to 8 rows, got 9"):
        engine.forward([encode(0, 0)] * 9)
    with pytest.raises(EngineFailure, match="slot 0 holds 0"):
        engine.forward([encode(1, 0), denoise(0, L)])
    assert clock() == began
    with pytest.raises(EngineFailure, match="slot 1 holds 0"):
        engine.forward([denoise(1, L)])


def test_what_was_encoded_can_be_copied_to_another_slot(
    engine: SimulatedEngine, clock: VirtualClock
) -> None:
    engine.forward([encode(0, 0)])
    engine.forward([encode(0, L)])
    began = clock()
    copies = [engine.snapshot(0, start, start + L) for start in (0, L)]
    nbytes = kv_bytes(H100.model, L, L).total
    assert [copy.nbytes for copy in copies] == [nbytes, nbytes]
    for copy in copies:
        engine.restore(3, copy)
    assert clock() - began == pytest.approx(4 * H100.copy_s(nbytes))
    engine.forward([denoise(3, 2 * L)])
    with pytest.raises(EngineFailure, match="slot 2 holds 0 tokens"):
        engine.restore(2, copies[1])
    with pytest.raises(EngineFailure, match="slot 2 holds 0 tokens, asked up to 256"):
        engine.snapshot(2, 0, L)
