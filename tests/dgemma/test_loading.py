from __future__ import annotations

from pathlib import Path

from dgemma.engine.base import Capacity
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.engine.simulated_engine import SimulatedEngine
from dgemma.loading import load
from dgemma.scheduler.line import ArrivalQueue
from dgemma.settings import Settings


def test_settings_ask_for_a_simulation(demo_checkpoint: Path) -> None:
    settings = Settings.load(
        simulate="h100-fp8-goal",
        checkpoint=demo_checkpoint,
        slots=3,
        max_model_len=4096,
        scheduler="fcfs",
        prefill_rows=2,
        prefix_cache_mib=0,
    )
    parts = load(settings)
    assert parts.simulation is not None and parts.simulation.name == "h100-fp8-goal"
    scheduler = parts.scheduler
    assert isinstance(scheduler.engine, SimulatedEngine)
    assert scheduler.engine.capacity == Capacity(3, 4096, 6)
    assert isinstance(scheduler.queue, ArrivalQueue)
    assert (scheduler.prefill_rows, scheduler.cache) == (2, None)


def test_or_for_an_engine(demo_engine: Path, demo_checkpoint: Path) -> None:
    settings = Settings.load(engine=demo_engine, checkpoint=demo_checkpoint, slots=1, threads=1)
    parts = load(settings)
    assert parts.simulation is None
    assert isinstance(parts.scheduler.engine, OnnxEngine)
    assert parts.scheduler.cache is not None
