"""A service on the engine for any GPU: opened, fallen back to, and answering.

Plain torch on the host stands for its kernels and a fake runtime for TensorRT's, for both need a
GPU.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dgemma.engine.tensorrt_engine as plans
import dgemma.engine.torch_engine as torch_engine
from dgemma.assemble import Parts, assemble
from dgemma.engine.base import Capacity
from dgemma.engine.device import HostDevice as Host
from dgemma.engine.torch_engine import TorchEngine
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Gpu, Machine
from dgemma.manifest import Runtime
from dgemma.metrics.engine import profile_info
from dgemma.profiles.serving import open_wanted
from dgemma.request import RawRequest
from dgemma.scheduler.events import Event, Finished
from dgemma.scheduler.options import Options
from dgemma_build.quantize.run import quantize_checkpoint
from tests.dgemma.engine.fake_gpu import FakeTensorRT, HostDevice
from tests.dgemma.engine.fake_tensorrt_runtime import VERSION, plan_bytes
from tests.manifests import renew_hashes
from tests.plans import PLAN, write_kernels, write_plan

SPARK = Gpu("NVIDIA GB10", "GPU-1", 121, "580", 2**37, 2**36)
HERE = Machine(SPARK, 2**36, {"tensorrt_rtx": VERSION, "torch": "2.13.0+cu130"}, {})
KERNELS = "torch-gpu-bf16-tp1-pp1"


made: list[dict[str, Any]] = []  # how engines of kernels were loaded


def load(directory: Path, store: Path, capacity: Capacity, **others: Any) -> TorchEngine:
    made.append({"directory": directory, "store": store, **others})
    return torch_engine.load(directory, store, capacity, device=Host, **others)


@pytest.fixture(autouse=True)
def on_spark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Machine, "here", lambda: HERE)
    here = partial(open_wanted, machine=lambda: HERE, builder=lambda: None)
    monkeypatch.setattr("dgemma.assemble.open_wanted", here)
    module = ModuleType("dgemma.engine.torch_engine")
    monkeypatch.setattr(module, "load", load, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made.clear()
    trt = FakeTensorRT()
    fake = partial(
        plans.TensorRTEngine,
        device=lambda: HostDevice(trt),
        load={"tensorrt_rtx": trt}.__getitem__,
        cache=tmp_path / "cache",
    )
    monkeypatch.setattr(plans, "TensorRTEngine", fake)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    store = tmp_path_factory.mktemp("store") / "bf16"
    quantize_checkpoint(demo_checkpoint, "bf16", store)
    return store


@pytest.fixture
def models(tmp_path: Path, weights: Path, demo_checkpoint: Path) -> Path:
    """A model store with an engine for any GPU."""
    root, geometry = tmp_path / "models", Geometry.from_checkpoint(demo_checkpoint)
    root.mkdir()
    (root / "weights").symlink_to(weights)
    write_kernels(root / "kernels", geometry, "bf16")
    return root


def add_plan(models: Path, checkpoint: Path) -> Path:
    directory, geometry = models / "plan", Geometry.from_checkpoint(checkpoint)
    manifest = write_plan(
        directory, geometry, "bf16", runtime=Runtime("tensorrt_rtx", VERSION, 121)
    )
    (directory / PLAN).write_bytes(plan_bytes(manifest))
    renew_hashes(directory)
    return directory


def served(models: Path, checkpoint: Path, **options: Any) -> Parts:
    return assemble(models, checkpoint, slots=1, max_model_len=300, threads=1, **options)


def assert_answers(parts: Parts) -> None:
    heard: list[Event] = []
    raw = RawRequest(input_ids=[70, 71], sampling_parameters=b'{"max_new_tokens": 4}')
    parts.scheduler.submit(parts.parser.parse(raw, "a"), heard.append)
    while parts.scheduler.step():
        pass
    last = heard[-1]
    assert isinstance(last, Finished) and last.finish_reason in ("stop", "length")


def test_it_is_opened_with_the_weights_beside_it_and_answers(
    models: Path, demo_checkpoint: Path
) -> None:
    options = Options(prefix_cache_bytes=2**20)
    parts = served(models, demo_checkpoint, options=options)
    assert parts.selection is not None and parts.selection.name == KERNELS
    [missed] = parts.selection.fell_back_from
    assert missed.name == "sm121" and "dgemma-build is not installed" in missed.reason
    [one] = made
    assert (one["directory"], one["store"]) == (models / "kernels", models / "weights")
    assert (one["machine"], one["snapshot_bytes"]) == (HERE, 2**20)
    assert_answers(parts)
    parts.in_use.close()


def test_a_plan_goes_first_and_one_that_does_not_load_falls_back(
    models: Path, demo_checkpoint: Path
) -> None:
    plan = add_plan(models, demo_checkpoint)
    first = served(models, demo_checkpoint)
    assert first.selection is not None and first.selection.directory == str(plan)
    assert first.selection.fell_back_from == () and made == []
    first.in_use.close()
    (plan / PLAN).write_bytes(b"of another version")
    renew_hashes(plan)
    second = served(models, demo_checkpoint)
    assert second.selection is not None and second.selection.name == KERNELS
    [missed] = second.selection.fell_back_from
    assert missed.name == second.selection.wanted == "tensorrt_rtx-sm121-bf16-tp1-pp1"
    assert PLAN in missed.reason
    assert profile_info(second.selection)[3:] == ("true", missed.name)
    assert_answers(second)
    second.in_use.close()


def test_an_engine_directory_takes_the_store_that_is_set(
    models: Path, weights: Path, tmp_path: Path, demo_checkpoint: Path
) -> None:
    alone = tmp_path / "alone" / "kernels"
    write_kernels(alone, Geometry.from_checkpoint(demo_checkpoint), "bf16")
    with pytest.raises(ConfigurationError, match="an engine without weights; set DGEMMA_WEIGHT_S"):
        served(alone, demo_checkpoint)
    parts = served(alone, demo_checkpoint, store=weights)
    assert made[-1]["store"] == weights
    parts.in_use.close()


def test_libraries_that_do_not_import_are_a_sentence(
    models: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dgemma.engine.torch_engine", None)
    with pytest.raises(ConfigurationError, match=r"torch engines cannot be run here: .*install"):
        served(models / "kernels", demo_checkpoint)


def test_without_a_gpu_it_is_refused(
    models: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "here", lambda: Machine(None, 2**36, {}, {}))
    with pytest.raises(ConfigurationError, match="select an engine for target cpu"):
        served(models / "kernels", demo_checkpoint)
