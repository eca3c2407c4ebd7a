from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dgemma.model.checkpoint import fill, parameter_shapes
from dgemma.model.network import Network
from dgemma.precision import policy_of
from dgemma.weight_store import WeightStore
from dgemma_build.quantize.run import quantize_checkpoint
from tests.quantized_checkpoint import GEOMETRY, STYLES, Quantized, quantized

SHAPES = parameter_shapes(GEOMETRY)
EXPERT = "model.decoder.layers.1.experts.2."
NVFP4 = tuple(style for style in STYLES if style.endswith("NVFP4"))


def precision_of(style: str) -> str:
    return style.rpartition(" ")[2].lower()


def taken_over(checkpoint: Quantized, directory: Path, precision: str) -> WeightStore:
    source = checkpoint.write(directory / "checkpoint")
    quantize_checkpoint(source, precision, directory / "store")
    return WeightStore.open(directory / "store", deep=True)


@pytest.mark.parametrize("style", STYLES)
def test_real_values_are_those_of_the_checkpoint(style: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    store = taken_over(checkpoint, tmp_path, precision_of(style))
    got = dict(store.parameters())
    assert got.keys() == SHAPES.keys()
    for name, values in got.items():
        torch.testing.assert_close(values.float(), checkpoint.real[name], rtol=3e-7, atol=0)
        assert tuple(values.shape) == SHAPES[name]
    with torch.device("meta"):
        network = Network(GEOMETRY)
    fill(network, store.parameters(), torch.float32)
    assert all(p.device.type == "cpu" for p in network.parameters())


@pytest.mark.parametrize("style", STYLES)
def test_payloads_and_block_scales_keep_their_bytes(style: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    store = taken_over(checkpoint, tmp_path, precision_of(style))
    payload = "weight_packed" if "tensors NVFP4" in style else "weight"

    def stacked(parts: list[str], suffix: str) -> Tensor:
        """Experts in order, the rows of an expert's gate before those of its up projection."""
        prefix = "model.decoder.layers.1.experts"
        rows = [
            torch.cat([checkpoint.tensors[f"{prefix}.{e}.{p}.{suffix}"] for p in parts]).view(
                torch.uint8
            )
            for e in range(GEOMETRY.num_experts)
        ]
        return torch.stack(rows)

    for bank, parts in (("gate_up_proj", ["gate_proj", "up_proj"]), ("down_proj", ["down_proj"])):
        name = f"layers.1.experts.{bank}"
        assert torch.equal(store.tensor(name).view(torch.uint8), stacked(parts, payload))
        if style in NVFP4:
            block = store.tensor(name + ".block_scale").view(torch.uint8)
            assert torch.equal(block, stacked(parts, "weight_scale"))


def test_each_half_of_an_expert_keeps_its_own_scale(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    scales = taken_over(checkpoint, tmp_path, "nvfp4").tensor(
        "layers.1.experts.gate_up_proj.row_scale"
    )
    assert scales.shape == (3, 128, 1)
    gate = checkpoint.tensors[EXPERT + "gate_proj.weight_scale_2"]
    up = checkpoint.tensors[EXPERT + "up_proj.weight_scale_2"]
    assert gate != up
    assert torch.equal(scales[2, :64, 0], gate.expand(64))
    assert torch.equal(scales[2, 64:, 0], up.expand(64))


@pytest.mark.parametrize("style", STYLES)
def test_experts_may_stand_under_another_prefix(style: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    checkpoint.rename(".experts.", ".moe.experts.")
    store = taken_over(checkpoint, tmp_path, precision_of(style))
    for name, values in store.parameters():
        torch.testing.assert_close(values.float(), checkpoint.real[name], rtol=3e-7, atol=0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("experts_only", [True, False])
def test_the_policy_is_what_is_quantised(style: str, experts_only: bool, tmp_path: Path) -> None:
    precision = precision_of(style)
    checkpoint = quantized(style, experts_only=experts_only)
    manifest = taken_over(checkpoint, tmp_path, precision).manifest
    assert manifest.policy == policy_of(precision, "experts" if experts_only else "all")
    assert manifest.origin == style


def test_layers_that_were_left_as_they_are_are_named_one_by_one(tmp_path: Path) -> None:
    checkpoint = quantized("compressed-tensors FP8")
    name = "layers.0.self_attn.o_proj.weight"
    plain = checkpoint.real[name].bfloat16()
    del checkpoint.tensors[f"model.decoder.{name}_scale"]
    checkpoint.tensors[f"model.decoder.{name}"] = plain
    store = taken_over(checkpoint, tmp_path, "fp8")
    everything = policy_of("fp8", "all")
    for other in SHAPES:
        wanted = "bf16" if other == name else everything.format_of(other).name
        assert store.manifest.policy.format_of(other).name == wanted
    assert torch.equal(store.parameter(name), plain)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_a_scale_for_a_whole_matrix_serves_all_its_rows(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    checkpoint = quantized("compressed-tensors FP8")
    weights = checkpoint.config["quantization_config"]["config_groups"]["group_0"]["weights"]
    weights["strategy"] = "tensor"
    name = EXPERT + "down_proj.weight_scale"
    checkpoint.tensors[name] = torch.full(shape, 0.25)
    scales = taken_over(checkpoint, tmp_path, "fp8").tensor("layers.1.experts.down_proj.row_scale")
    assert torch.equal(scales[2], torch.full((64, 1), 0.25))


def test_scales_of_activations_and_of_a_quantised_cache_are_left_out(tmp_path: Path) -> None:
    """Experts that calibration never reached have no input scale; nothing here needs one."""
    checkpoint = quantized("ModelOpt NVFP4")
    del checkpoint.tensors[EXPERT + "down_proj.input_scale"]
    checkpoint.tensors["model.decoder.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(1.0)
    checkpoint.tensors["model.encoder.vision_tower.a.weight_packed"] = torch.ones(2)
    store = taken_over(checkpoint, tmp_path, "nvfp4")
    wanted = policy_of("nvfp4").tensors(SHAPES)
    assert {name: record.spec for name, record in store.manifest.tensors.items()} == wanted


def test_what_was_taken_over_is_up_to_date_afterwards(tmp_path: Path) -> None:
    source = quantized("ModelOpt NVFP4").write(tmp_path / "checkpoint")
    assert not quantize_checkpoint(source, "nvfp4", tmp_path / "store").up_to_date
    assert quantize_checkpoint(source, "nvfp4", tmp_path / "store").up_to_date


def test_shards_are_safetensors(tmp_path: Path) -> None:
    store = taken_over(quantized("compressed-tensors NVFP4"), tmp_path, "nvfp4")
    loaded: dict[str, Tensor] = {}
    for file in store.manifest.files:
        loaded |= load_file(store.directory / file)
    assert loaded.keys() == store.manifest.tensors.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor.view(torch.uint8), store.tensor(name).view(torch.uint8))
