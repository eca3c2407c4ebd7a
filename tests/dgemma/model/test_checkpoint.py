from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.model.checkpoint import Checkpoint, fill, hf_name, load_tensors, parameter_shapes
from dgemma.model.network import Network
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, shard, write_weights

GEOMETRY = geometry_of(hidden_size=12, vocab_size=30)
SOURCE = random_network(GEOMETRY)
Q = "model.decoder.layers.1.self_attn.q_proj.weight"
SCALAR = "model.encoder.language_model.layers.0.layer_scalar"


def write(directory: Path, **changed: Tensor | None) -> Path:
    """The checkpoint with tensors replaced, added or (None) left out."""
    tensors = {k: v for k, v in {**hf_tensors(SOURCE), **changed}.items() if v is not None}
    return write_weights(directory, GEOMETRY, tensors)


def load(directory: Path) -> Network:
    with torch.device("meta"):
        network = Network(GEOMETRY)
    fill(network, load_tensors(Checkpoint(directory), GEOMETRY), torch.float32)
    return network


def refusal(directory: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def check_loaded(network: Network) -> None:
    wanted = dict(SOURCE.named_parameters())
    got = dict(network.named_parameters())
    assert got.keys() == wanted.keys()
    for name, parameter in got.items():
        assert torch.equal(parameter, wanted[name]), name
        assert parameter.dtype == torch.float32 and not parameter.requires_grad


# What is read


def test_every_weight_is_loaded_by_its_hf_name(tmp_path: Path) -> None:
    check_loaded(load(write(tmp_path)))


def test_the_geometry_of_the_config_is_the_networks(tmp_path: Path) -> None:
    assert Geometry.from_checkpoint(write(tmp_path)) == GEOMETRY


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_sharded_checkpoint_is_read_by_its_index(tmp_path: Path, parts: int) -> None:
    shard(write(tmp_path), parts)
    check_loaded(load(tmp_path))


def test_the_encoder_has_layer_scalars_of_its_own(tmp_path: Path) -> None:
    network = load(write(tmp_path, **{SCALAR: torch.tensor([0.25])}))
    assert float(network.layers[0].encoder_layer_scalar) == 0.25  # type: ignore[arg-type]
    assert hf_name("layers.0.encoder_layer_scalar") == SCALAR
    assert hf_name("layers.0.layer_scalar") == "model.decoder.layers.0.layer_scalar"


def test_full_layers_have_no_value_projection() -> None:
    names = set(hf_tensors(SOURCE))
    assert "model.decoder.layers.0.self_attn.v_proj.weight" in names
    assert "model.decoder.layers.1.self_attn.v_proj.weight" not in names


@pytest.mark.parametrize(
    "name", ["model.encoder.vision_tower.patch.weight", "model.encoder.embed_vision.proj.weight"]
)
def test_the_vision_tower_is_known_and_left_out(tmp_path: Path, name: str) -> None:
    check_loaded(load(write(tmp_path, **{name: torch.ones(3, 3)})))


def test_half_precision_weights_are_converted_one_by_one(tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in hf_tensors(SOURCE).items()}
    network = load(write_weights(tmp_path, GEOMETRY, halves))
    assert network.norm.weight is not None and SOURCE.norm.weight is not None
    assert torch.equal(network.norm.weight, SOURCE.norm.weight.bfloat16().float())


# What is refused


@pytest.mark.parametrize("name", [Q, SCALAR, "model.decoder.embed_tokens.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    assert f"missing tensors: {name}" in refusal(write(tmp_path, **{name: None}))


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    gone = {name: None for name in hf_tensors(SOURCE) if ".layers.1." in name}
    message = refusal(write(tmp_path, **gone))
    assert f"and {len(gone) - 5} more" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.decoder.layers.2.layer_scalar",
        "model.decoder.layers.0.self_attn.q_proj.bias",
        "model.decoder.layers.1.self_attn.v_proj.weight",
        "model.encoder.language_model.norm.weight",
        "lm_head.weight",
    ],
)
def test_an_unknown_tensor_is_named(tmp_path: Path, name: str) -> None:
    assert f"unknown tensors: {name}" in refusal(write(tmp_path, **{name: torch.ones(2)}))


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, **{Q: torch.ones(5, 7)}))
    assert f"tensor {Q} has shape [5, 7]" in message
    assert "config.json implies [24, 12]" in message


def test_a_transposed_tensor_is_misshapen(tmp_path: Path) -> None:
    name = "model.decoder.layers.0.mlp.gate_proj.weight"
    message = refusal(write(tmp_path, **{name: torch.ones(12, 8)}))
    assert name in message


def test_a_directory_without_weights(tmp_path: Path) -> None:
    (write(tmp_path) / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 100])
def test_a_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path) / "model.safetensors").write_bytes(content)
    assert "model.safetensors: not a readable safetensors file" in refusal(tmp_path)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: not a readable safetensors file" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(write(tmp_path), 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: no such file" in refusal(tmp_path)


def test_an_index_that_names_what_its_shard_lacks(tmp_path: Path) -> None:
    shard(write(tmp_path), 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, second = sorted(set(index["weight_map"].values()))
    index["weight_map"][Q] = second if index["weight_map"][Q] == first else first
    path.write_text(json.dumps(index))
    assert f"{index['weight_map'][Q]} does not hold tensor {Q}" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_no_index(tmp_path: Path, text: str) -> None:
    shard(write(tmp_path), 2)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "no readable weight_map" in refusal(tmp_path)


# Memory


def test_shapes_are_known_without_allocating_the_network() -> None:
    large = geometry_of(hidden_size=4096, vocab_size=2**20, layer_types=["full_attention"] * 40)
    tracemalloc.start()
    shapes = parameter_shapes(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shapes["embed_tokens.weight"] == (2**20, 4096)
    assert peak < 50 * 2**20


def test_loading_holds_one_tensor_at_a_time() -> None:
    """A tensor is put in its place before the next one is read, and no copy of it is made."""
    with torch.device("meta"):
        network = Network(GEOMETRY)
    given: list[tuple[str, Tensor]] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in SOURCE.named_parameters():
            if given:
                last, tensor = given[-1]
                placed = dict(network.named_parameters())[last]
                assert placed.data_ptr() == tensor.data_ptr(), f"{last} was copied or kept back"
            given.append((name, parameter.detach().clone()))
            yield given[-1]

    fill(network, tensors(), torch.float32)
    check_loaded(network)


def test_tensors_are_read_one_by_one(tmp_path: Path) -> None:
    """What comes after the first tensor is not touched by reading the first."""
    shard(write(tmp_path), 4)
    checkpoint = Checkpoint(tmp_path)
    stream = load_tensors(checkpoint, GEOMETRY)
    name, _ = next(stream)
    for file in set(checkpoint.files.values()) - {checkpoint.files[hf_name(name)]}:
        file.unlink()
    with pytest.raises(ConfigurationError, match="tensor model"):
        list(stream)


def test_a_tensor_lost_after_validation_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write(tmp_path))
    assert Q in checkpoint.files
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=f"tensor {Q}"):
        checkpoint.tensor(Q)
