from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dgemma.dequantize import dequantize
from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import fill, parameter_shapes
from dgemma.model.network import Network
from dgemma.precision import FORMATS
from dgemma.store_manifest import FILE_NAME
from dgemma.weight_store import WeightStore
from dgemma_build.quantize.run import quantize_checkpoint
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights
from tests.quantized_checkpoint import GEOMETRY

SOURCE = random_network(GEOMETRY)
SHAPES = parameter_shapes(GEOMETRY)
DOWN = "layers.0.experts.down_proj"


@pytest.fixture(params=["fp8", "int4", "nvfp4", "bf16"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> WeightStore:
    checkpoint = write_weights(tmp_path / "checkpoint", GEOMETRY, hf_tensors(SOURCE))
    quantize_checkpoint(checkpoint, request.param, tmp_path / "store")
    return WeightStore.open(tmp_path / "store", deep=True)


def test_every_tensor_has_the_shape_and_type_that_the_manifest_says(store: WeightStore) -> None:
    for name, record in store.manifest.tensors.items():
        tensor = store.tensor(name)
        assert tuple(tensor.shape) == record.shape
        assert tensor.dtype == record.spec.torch_dtype


def test_a_parameter_is_payload_times_scales(store: WeightStore) -> None:
    format = store.manifest.policy.format_of(DOWN)
    names = {name.removeprefix(DOWN) for name in store.manifest.tensors if name.startswith(DOWN)}
    parts = {name: store.tensor(DOWN + name) for name in names}
    wanted = dequantize(format, parts[""], parts.get(".block_scale"), parts.get(".row_scale"))
    assert torch.equal(store.parameter(DOWN).float(), wanted)


def test_the_network_is_filled_with_real_weights(store: WeightStore) -> None:
    with torch.device("meta"):
        network = Network(GEOMETRY)
    fill(network, store.parameters(), torch.float32)
    for name, parameter in network.named_parameters():
        wanted = dict(SOURCE.named_parameters())[name]
        assert parameter.shape == wanted.shape and parameter.dtype == torch.float32
        assert (parameter - wanted).norm() < 0.2 * wanted.norm(), name


def test_what_is_not_quantised_is_bf16(store: WeightStore) -> None:
    for name in SHAPES:
        if not store.manifest.policy.format_of(name).is_quantized:
            wanted = dict(SOURCE.named_parameters())[name].bfloat16()
            assert torch.equal(store.parameter(name), wanted)
    assert store.manifest.policy.format_of("norm.weight") == FORMATS["bf16"]


def test_a_name_that_the_store_does_not_have(store: WeightStore) -> None:
    with pytest.raises(KeyError, match="nothing"):
        store.tensor("nothing")


@pytest.mark.parametrize("name", ["layer-01.safetensors", "rest.safetensors", FILE_NAME])
def test_a_flipped_bit_is_refused_when_it_is_opened(store: WeightStore, name: str) -> None:
    path = store.directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=name):
        WeightStore.open(store.directory, deep=True)


def test_a_file_that_was_cut_off_is_refused_without_hashing(store: WeightStore) -> None:
    path = store.directory / "layer-01.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=r"layer-01\.safetensors: .* bytes, store\.json"):
        WeightStore.open(store.directory)


def test_a_file_that_changes_while_it_is_read_is_named(store: WeightStore) -> None:
    path = store.directory / "layer-00.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match=rf"layer-00\.safetensors: tensor {DOWN}: the fi"):
        store.tensor(DOWN)
    path.unlink()
    with pytest.raises(ConfigurationError, match=rf"layer-00\.safetensors: tensor {DOWN}: .*No su"):
        store.tensor(DOWN)
