"""The real tensorrt-rtx, as far as it goes without a GPU: its names, and how it refuses a plan."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from dgemma.engine.runtime_cache import RuntimeCache
from dgemma.engine.tensorrt_runtime import Plan
from dgemma.errors import ConfigurationError
from dgemma.manifest import Manifest
from tests.dgemma.engine import fake_tensorrt_runtime as fake
from tests.dgemma.engine.fake_gpu import FakeTensorRT
from tests.dgemma_build.quantized import whole_groups
from tests.plans import PLAN, write_plan

trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
CLASSES = ("ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache", "ILogger")


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize("name", CLASSES)
def test_the_fake_has_no_name_that_the_real_one_lacks(name: str) -> None:
    mine = public(getattr(fake, name)) | set(getattr(getattr(fake, name), "_types", ()))
    assert mine and mine <= set(dir(getattr(trt, name)))


@pytest.mark.parametrize("name", [k for k, v in vars(fake).items() if isinstance(v, type)])
def test_the_fakes_enumerations_are_the_real_ones(name: str) -> None:
    kind = getattr(fake, name)
    if issubclass(kind, Enum) and kind is not Enum:
        assert {m.name for m in kind} <= set(getattr(trt, name).__members__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a plan", "bufferSize >= minBufferSize"),
        (None, "CUDA"),  # whole, and for a GPU that is not here
    ],
)
def test_a_plan_is_refused_with_tensorrts_own_reason(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    manifest = write_plan(tmp_path, whole_groups(), "bf16")
    (tmp_path / PLAN).write_bytes(content or small_plan())
    with pytest.raises(ConfigurationError) as caught:
        Plan(tmp_path, manifest, *manifest.links, RuntimeCache(tmp_path / "cache"))
    message = str(caught.value)
    assert f"{PLAN}: tensorrt_rtx {trt.__version__} cannot load it: " in message
    assert said in message and "on the GPU that it was compiled for" in message


def small_plan() -> bytes:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM121, 0)
    given = network.add_input("x", trt.float32, (4,))
    network.mark_output(network.add_unary(given, trt.UnaryOperation.EXP).get_output(0))
    return bytes(builder.build_serialized_network(network, config))


def test_what_is_no_manifests_plan_is_refused(tmp_path: Path) -> None:
    """With the fake, which can load one: a plan whose inputs are not what the manifest lists."""
    manifest: Manifest = write_plan(tmp_path, whole_groups(), "bf16")
    other = write_plan(tmp_path / "other", whole_groups(), "int4")
    (tmp_path / PLAN).write_bytes(fake.plan_bytes(other))
    world = FakeTensorRT()
    with pytest.raises(ConfigurationError, match=r"plan and manifest differ in layers\.0\."):
        Plan(tmp_path, manifest, *manifest.links, RuntimeCache(tmp_path / "cache"), lambda _: world)
