from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.machine import Machine
from dgemma.precision import policy_of
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.profile import Profile, profiles
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.profiles.stores import (
    GEOMETRY,
    NO_GPU,
    ON_SPARK,
    SPARK,
    cut,
    write_engine,
    write_weights,
)


def found(root: Path, machine: Machine = NO_GPU) -> list[Profile]:
    return profiles(Inventory.of(root), machine, GEOMETRY)


def directories(root: Path, machine: Machine = NO_GPU) -> list[str]:
    return [profile.engine.directory.name for profile in found(root, machine)]


def test_a_name_says_runtime_target_and_precision(tmp_path: Path) -> None:
    write_engine(tmp_path / "a", "int4")
    [profile] = found(tmp_path)
    assert profile.name == "onnxruntime-cpu-int4-tp1-pp1"
    assert len(profile.id) == 64 and profile.refusal is None


def test_the_order_is_that_of_the_target(tmp_path: Path) -> None:
    for precision in ("nvfp4", "int4", "fp32", "fp8"):
        write_engine(tmp_path / f"cpu-{precision}", precision)
    assert directories(tmp_path) == ["cpu-fp32", "cpu-fp8", "cpu-int4", "cpu-nvfp4"]
    for precision in ("bf16", "fp8", "nvfp4"):
        write_engine(tmp_path / f"spark-{precision}", precision, "sm121")
        write_weights(tmp_path / f"weights-{precision}", precision)
    on_spark = directories(tmp_path, ON_SPARK)
    assert on_spark[:3] == ["spark-nvfp4", "spark-fp8", "spark-bf16"]
    assert on_spark[3] == "cpu-fp32", "what any machine runs comes after what this one is for"


def test_of_one_precision_the_newest_weights_come_first(tmp_path: Path) -> None:
    write_engine(tmp_path / "plan", "nvfp4", "sm121")
    for age, source in enumerate(("newest", "older", "oldest")):
        write_weights(tmp_path / source, "nvfp4", source=source, written=1e9 - age)
    stores = [p.weights.directory.name for p in found(tmp_path, ON_SPARK) if p.weights]
    assert stores == ["newest", "older", "oldest"]
    assert len({profile.id for profile in found(tmp_path, ON_SPARK)}) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"policy": policy_of("fp8")},
        {"policy": policy_of("nvfp4", "all")},
        {"geometry": geometry_of(hidden_size=64)},
    ],
    ids=["format", "policy", "geometry"],
)
def test_weights_of_something_else_are_not_a_plans(
    tmp_path: Path, other: dict[str, object]
) -> None:
    write_engine(tmp_path / "plan", "nvfp4", "sm121")
    write_weights(tmp_path / "weights", "nvfp4", **other)  # type: ignore[arg-type]
    [profile] = found(tmp_path, ON_SPARK)
    assert profile.weights is None
    assert "has no nvfp4 weights for it" in str(profile.refusal)
    assert "dgemma-build quantize --precision nvfp4" in str(profile.refusal)


def test_a_plan_for_another_gpu_version_or_geometry_says_so(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", "fp8")
    write_engine(tmp_path / "gpu", "fp8", "sm89")
    write_engine(tmp_path / "version", "fp8", "sm121", version="1.6")
    write_engine(tmp_path / "geometry", geometry=geometry_of(vocab_size=99))
    reasons = {p.engine.directory.name: str(p.refusal) for p in found(tmp_path, ON_SPARK)}
    assert "compiled for compute capability 89" in reasons["gpu"]
    assert "compiled by tensorrt_rtx 1.6, here is 1.7" in reasons["version"]
    assert "another geometry, it differs in vocab_size" in reasons["geometry"]


def test_weights_that_are_larger_than_the_gpu_are_refused_with_both_sizes(tmp_path: Path) -> None:
    write_engine(tmp_path / "plan", "fp8", "sm121")
    size = write_weights(tmp_path / "weights", "fp8") / "layer-00.safetensors"
    tiny = replace(ON_SPARK, gpu=replace(SPARK, memory_bytes=size.stat().st_size))
    [profile] = found(tmp_path, tiny)
    assert "do not fit into" in str(profile.refusal) and "NVIDIA GB10" in str(profile.refusal)
    assert found(tmp_path, ON_SPARK)[0].refusal is None


def test_a_broken_store_is_not_what_a_plan_runs_on(tmp_path: Path) -> None:
    write_engine(tmp_path / "plan", "fp8", "sm121")
    write_weights(tmp_path / "old", "fp8", source="old", written=1e8)
    cut(write_weights(tmp_path / "new", "fp8", source="new") / "layer-00.safetensors")
    [profile] = found(tmp_path, ON_SPARK)
    assert profile.weights is not None and profile.weights.directory.name == "old"
