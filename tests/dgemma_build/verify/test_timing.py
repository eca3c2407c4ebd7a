from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.bench.timing import Stand
from dgemma.errors import ConfigurationError
from dgemma.geometries import named_geometry
from dgemma.manifest import Runtime
from dgemma.roofline.sizes import Model
from dgemma.targets import load_targets
from dgemma.targets.products import gpu_of
from dgemma_build.verify.run import Wanted, capacity_of
from tests.dgemma.engine.fake_engine import FakeEngine, geometry_of
from tests.plans import LIMITS, write_plan

TARGETS = load_targets()
REAL = named_geometry("diffusiongemma-26b-a4b")


def test_a_floor_is_the_products_bandwidth_and_the_bytes_of_the_pass() -> None:
    spark = gpu_of(TARGETS["sm121"], "NVIDIA GB10")
    assert spark is not None and spark.bandwidth_bytes_per_s == 273_000_000_000
    model = Model.of(REAL, "int4")
    (speed,) = Stand(FakeEngine(1, context=8), model, spark).speeds(runs=1)
    assert (speed.rows, speed.context) == (1, 0)
    assert speed.engine_ms > 0 and speed.floor_ms == pytest.approx(
        64.6, abs=1
    )  # 17.6 GB at 273 GB/s


def test_a_product_that_no_target_knows_has_no_floor() -> None:
    assert gpu_of(TARGETS["sm121"], "NVIDIA RTX PRO 6000") is None
    assert gpu_of(TARGETS["cpu"], "NVIDIA GB10") is None


def test_an_engine_is_run_with_no_more_than_its_plan_was_built_for(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, geometry_of(), "bf16", runtime=Runtime("tensorrt", "11.4", 90))
    wide = Wanted(slots=64, context=10**6)
    limited = capacity_of(plan, wide)
    assert (limited.slots, limited.context, limited.rows) == (4, 256, 8)
    assert LIMITS["slots"][1] == 4 and geometry_of().max_position_embeddings == 256
    assert capacity_of(plan, Wanted(slots=1, context=100)).context == 100
    with pytest.raises(ConfigurationError, match="context: got 31; at least 32, four canvases"):
        capacity_of(plan, Wanted(context=31))
