"""What a first start builds with the real builder, and what is served of a damaged store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.assemble import Parts, assemble
from dgemma.engine.kernel_sources import sources_digest
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Gpu, Machine
from dgemma.profiles.builder import Builder
from dgemma.profiles.first_start import build_first
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.profile import profiles
from dgemma.request import RawRequest
from dgemma.scheduler.events import Event, Finished
from tests.dgemma.profiles.stores import flip
from tests.model_store import ModelStore


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


def assembled(store: ModelStore, profile: str | None = None) -> Parts:
    return assemble(store.root, store.checkpoint, profile=profile, slots=1, threads=1)


def answers(parts: Parts) -> bool:
    heard: list[Event] = []
    raw = RawRequest(input_ids=[70, 71], sampling_parameters=b'{"max_new_tokens": 5}')
    parts.scheduler.submit(parts.parser.parse(raw, "a"), heard.append)
    while parts.scheduler.step():
        pass
    return isinstance(heard[-1], Finished) and heard[-1].error is None


def test_a_store_of_weights_gets_its_engine_at_the_first_start(model_store: ModelStore) -> None:
    assert model_store.refused == ()
    found = Inventory.of(model_store.root, deep=True)
    assert found.broken == ()
    [int4] = [e for e in found.engines if e.directory != model_store.fp32]
    assert int4.manifest.precision == "int4" and int4.manifest.target == "cpu"
    assert int4.directory.parent == model_store.root / "engines"
    assert not list(model_store.root.rglob("*.lock"))


def test_a_gpu_without_its_compiler_gets_an_engine_for_any(
    model_store: ModelStore, tmp_path: Path
) -> None:
    store = model_store.copy(tmp_path / "store")
    h200 = Gpu("NVIDIA H200", "GPU-1", 90, "580", 2**37, 2**36)
    here = Machine(h200, 2**36, {"torch": "2.13.0+cu130"}, {})
    geometry = Geometry.from_checkpoint(store.checkpoint)
    [missed] = build_first(Inventory.of(store.root), here, geometry, Builder.here())
    assert missed.name == "sm90" and "none can be built here: tensorrt" in missed.reason
    [best, *_] = profiles(Inventory.of(store.root, deep=True), here, geometry)
    assert (best.name, best.refusal) == ("torch-gpu-int4-tp1-pp1", None)
    assert best.engine.directory.name.startswith("gpu-int4-torch-2.13.0+cu130-")
    assert best.engine.manifest.source == sources_digest()


def test_the_preferred_precision_is_served_and_the_named_one(model_store: ModelStore) -> None:
    parts = assembled(model_store)
    assert parts.selection.name == "onnxruntime-cpu-fp32-tp1-pp1" and answers(parts)
    parts.in_use.close()
    named = assembled(model_store, "onnxruntime-cpu-int4-tp1-pp1")
    assert named.selection.fell_back_from == () and answers(named)
    named.in_use.close()


def test_an_engine_with_a_flipped_bit_is_passed_over_for_the_next(
    model_store: ModelStore, tmp_path: Path
) -> None:
    damaged = model_store.copy(tmp_path / "store")
    flip(damaged.fp32 / "weights.safetensors")
    parts = assembled(damaged)
    assert parts.selection.name == "onnxruntime-cpu-int4-tp1-pp1" and answers(parts)
    [missed] = parts.selection.fell_back_from
    assert f"{damaged.fp32}/weights.safetensors: its content has changed" in missed.reason
    parts.in_use.close()
    with pytest.raises(ConfigurationError, match=r"its content has changed.* these fit: .*int4"):
        assembled(damaged, "onnxruntime-cpu-fp32-tp1-pp1")
