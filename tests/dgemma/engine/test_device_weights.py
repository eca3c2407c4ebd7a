from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dgemma.engine.base import Capacity
from dgemma.engine.binding_plan import BindingPlan
from dgemma.engine.buckets import Bucket
from dgemma.engine.device_memory import check_memory, view
from dgemma.engine.device_weights import load_weights
from dgemma.errors import ConfigurationError
from dgemma.store_manifest import StoreManifest
from dgemma.weight_store import WeightStore
from tests.dgemma.engine.fake_gpu import FakeTensorRT, HostDevice
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.quantized import whole_groups
from tests.plans import write_plan, write_store

GEOMETRY = whole_groups()
CAPACITY, BUCKET = Capacity(1, 100, 2), Bucket(2, 1, 100, 12, 16)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "weights", random_network(GEOMETRY), "nvfp4")


@pytest.fixture
def plan(tmp_path: Path) -> BindingPlan:
    manifest = write_plan(tmp_path / "engine", GEOMETRY, "nvfp4")
    return BindingPlan.of(manifest, CAPACITY, BUCKET)


@pytest.mark.parametrize("piece", [100, 4096, 2**20])
def test_every_tensor_arrives_whatever_the_pieces_are(
    store: Path, plan: BindingPlan, piece: int
) -> None:
    device, manifest = HostDevice(FakeTensorRT()), StoreManifest.read(store)
    memory = device.allocate(plan.weights.nbytes)
    told: list[tuple[int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append((done, total))

    load_weights(store, manifest, plan.weights, memory, device, progress, piece)
    stored = WeightStore.open(store)
    assert plan.weights.places.keys() <= manifest.tensors.keys()
    for name in plan.weights.places:
        got, wanted = view(plan.weights, memory, name), stored.tensor(name)
        assert got.dtype == wanted.dtype, name
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)), name
    assert told == sorted(told) and told[-1] == (manifest.size, manifest.size)


@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize("name", ["layer-00.safetensors", "rest.safetensors"])
def test_a_flipped_bit_is_found_while_weights_are_read(
    store: Path, plan: BindingPlan, name: str, where: float
) -> None:
    data = bytearray((store / name).read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    (store / name).write_bytes(data)
    device = HostDevice(FakeTensorRT())
    memory = device.allocate(plan.weights.nbytes)
    with pytest.raises(ConfigurationError, match=f"{name}: its content has changed; write it"):
        load_weights(store, StoreManifest.read(store), plan.weights, memory, device)


def test_memory_that_is_lacking_is_told_with_every_figure() -> None:
    needs = {"weights": 16_000_000_000, "K/V pools": 3_000_000_000}
    check_memory(Path("plan.engine"), needs, 19_000_000_000)
    with pytest.raises(ConfigurationError) as caught:
        check_memory(Path("plan.engine"), needs, 18_990_000_000)
    message = str(caught.value)
    assert "plan.engine: needs 19.00 GB of device memory (weights 16.00, K/V pools 3.00)" in message
    assert "18.99 GB are free; lower DGEMMA_SLOTS or NIM_MAX_MODEL_LEN" in message
