from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma_build.quantize.run import quantize_checkpoint
from tests.quantized_checkpoint import STYLES, Quantized, quantized

EXPERT = "model.decoder.layers.1.experts.2."
NVFP4 = tuple(style for style in STYLES if style.endswith("NVFP4"))


def precision_of(style: str) -> str:
    return style.rpartition(" ")[2].lower()


def refusal(checkpoint: Quantized, directory: Path, precision: str) -> str:
    source = checkpoint.write(directory / "checkpoint")
    with pytest.raises(ConfigurationError) as caught:
        quantize_checkpoint(source, precision, directory / "store")
    assert {path.name for path in directory.iterdir()} == {"checkpoint"}, "left something behind"
    return str(caught.value)


@pytest.mark.parametrize(
    ("style", "precision"),
    [
        (style, precision)
        for style in STYLES
        for precision in ("fp8", "int4", "nvfp4", "bf16")
        if precision != precision_of(style)
    ],
)
def test_it_is_never_made_another_precision(style: str, precision: str, tmp_path: Path) -> None:
    message = refusal(quantized(style), tmp_path, precision)
    assert f"is {style} already and cannot be made {precision}" in message
    assert f"use --precision {precision_of(style)}, or the BF16 checkpoint" in message


def test_a_policy_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    source = quantized("ModelOpt NVFP4").write(tmp_path / "checkpoint")
    with pytest.raises(ConfigurationError, match=r"is not --policy all but layers.*leave out --po"):
        quantize_checkpoint(source, "nvfp4", tmp_path / "store", "all")
    quantize_checkpoint(source, "nvfp4", tmp_path / "store", "experts")


@pytest.mark.parametrize("style", STYLES)
def test_a_bank_of_experts_left_in_bf16_is_refused(style: str, tmp_path: Path) -> None:
    """Tools that see linear layers alone leave the fused experts as they are."""
    checkpoint = quantized(style)
    checkpoint.tensors = {k: t for k, t in checkpoint.tensors.items() if ".experts." not in k}
    for name, values in checkpoint.real.items():
        if ".experts." in name:
            checkpoint.tensors["model.decoder." + name] = values.bfloat16()
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"claims to be {style}, but left its experts as they were" in message
    assert "model.decoder.layers.0.experts.gate_up_proj" in message


def test_a_quantised_bank_that_is_not_split_is_refused(tmp_path: Path) -> None:
    checkpoint = quantized("compressed-tensors FP8")
    name = "model.decoder.layers.1.experts.down_proj"
    checkpoint.tensors[name] = torch.ones(3, 64, 64).to(torch.float8_e4m3fn)
    message = refusal(checkpoint, tmp_path, "fp8")
    assert f"tensor {name} is F8_E4M3, expected quantised experts to be split one by o" in message


@pytest.mark.parametrize("style", STYLES)
def test_a_split_expert_left_in_bf16_is_refused(style: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    for name in [name for name in checkpoint.tensors if name.startswith(EXPERT + "up_proj")]:
        del checkpoint.tensors[name]
    checkpoint.tensors[EXPERT + "up_proj.weight"] = torch.ones(64, 64).bfloat16()
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"left its experts as they were: {EXPERT}up_proj.weight;" in message


@pytest.mark.parametrize(
    ("style", "suffix"),
    [
        ("ModelOpt NVFP4", "weight"),
        ("ModelOpt NVFP4", "weight_scale"),
        ("ModelOpt NVFP4", "weight_scale_2"),
        ("compressed-tensors NVFP4", "weight_packed"),
        ("compressed-tensors NVFP4", "weight_scale"),
        ("compressed-tensors NVFP4", "weight_global_scale"),
        ("compressed-tensors FP8", "weight"),
        ("compressed-tensors FP8", "weight_scale"),
    ],
)
def test_a_missing_weight_or_scale_is_named(style: str, suffix: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    names = [f"model.decoder.layers.{i}.experts.{e}.up_proj.{suffix}" for i, e in ((0, 1), (1, 2))]
    for name in names:
        del checkpoint.tensors[name]
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"missing tensors: {', '.join(names)};" in message


def test_many_missing_scales_are_counted(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    gone = [name for name in checkpoint.tensors if name.endswith("weight_scale_2")]
    for name in gone:
        del checkpoint.tensors[name]
    assert f"and {len(gone) - 5} more" in refusal(checkpoint, tmp_path, "nvfp4")


def test_the_name_in_the_message_is_the_one_in_the_file(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    checkpoint.rename(".experts.", ".moe.experts.")
    name = EXPERT.replace(".experts", ".moe.experts") + "up_proj.weight_scale"
    checkpoint.tensors[name] = torch.ones(64, 4).bfloat16()
    message = refusal(checkpoint, tmp_path, "nvfp4")
    assert f"tensor {name} is BF16, expected F8_E4M3" in message


@pytest.mark.parametrize("style", ["compressed-tensors NVFP4", "compressed-tensors FP8"])
def test_static_activations_without_their_scale_are_refused(style: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    group = checkpoint.config["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"]["dynamic"] = False
    suffix = "input_global_scale" if style in NVFP4 else "input_scale"
    layers = {name.rpartition(".")[0] for name in checkpoint.tensors if name.endswith("_scale")}
    for layer in layers - {EXPERT + "gate_proj"}:
        checkpoint.tensors[f"{layer}.{suffix}"] = torch.tensor([0.5])
    checkpoint.tensors.pop(f"{EXPERT}gate_proj.{suffix}", None)
    for name in [n for n in checkpoint.tensors if "router" in n and n.endswith(suffix)]:
        del checkpoint.tensors[name]
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"missing tensors: {EXPERT}gate_proj.{suffix};" in message


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.decoder.layers.0.experts.3.up_proj.weight",
        "model.decoder.layers.0.router.proj.weight_scale",
        "model.decoder.layers.0.mlp.up_proj.weight_zero_point",
    ],
)
@pytest.mark.parametrize("style", STYLES)
def test_unknown_tensors_are_named(style: str, name: str, tmp_path: Path) -> None:
    checkpoint = quantized(style)
    checkpoint.tensors[name] = torch.ones(2)
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"unknown tensors: {name}" in message


def test_scales_of_a_layer_that_is_not_quantised_are_unknown(tmp_path: Path) -> None:
    checkpoint = quantized("compressed-tensors FP8")
    name = "model.decoder.layers.0.mlp.up_proj.weight"
    checkpoint.tensors[name] = torch.ones(128, 64).bfloat16()
    assert f"unknown tensors: {name}_scale" in refusal(checkpoint, tmp_path, "fp8")


def test_a_router_that_is_quantised_is_refused(tmp_path: Path) -> None:
    checkpoint = quantized("compressed-tensors FP8")
    name = "model.decoder.layers.0.router.proj.weight"
    checkpoint.tensors[name] = checkpoint.tensors[name].to(torch.float8_e4m3fn)
    message = refusal(checkpoint, tmp_path, "fp8")
    assert f"tensor {name} is F8_E4M3, expected F32, BF16 or F16" in message


def test_two_tensors_for_one_weight_are_refused(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    name = EXPERT + "up_proj.weight"
    twin = name.replace(".experts.", ".moe.experts.")
    checkpoint.tensors[twin] = checkpoint.tensors[name].clone()
    message = refusal(checkpoint, tmp_path, "nvfp4")
    assert "two tensors for one weight" in message and name in message and twin in message


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        ("weight", torch.zeros(64, 16, dtype=torch.uint8), "shape [64, 16]"),
        ("weight", torch.zeros(64, 32, dtype=torch.int8), "is I8, expected U8"),
        ("weight_scale", torch.ones(64, 2).to(torch.float8_e4m3fn), "shape [64, 2]"),
        ("weight_scale", torch.ones(64, 4), "is F32, expected F8_E4M3"),
        ("weight_scale_2", torch.ones(64, 1), "shape [64, 1]"),
        ("weight_scale_2", torch.ones(1, dtype=torch.int32), "is I32, expected F32, BF16"),
    ],
)
def test_misshapen_tensors_are_named(
    suffix: str, tensor: Tensor, message: str, tmp_path: Path
) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    checkpoint.tensors[EXPERT + "up_proj." + suffix] = tensor
    got = refusal(checkpoint, tmp_path, "nvfp4")
    assert f"tensor {EXPERT}up_proj.{suffix}" in got and message in got


def test_a_factor_where_a_divisor_is_stated_is_refused(tmp_path: Path) -> None:
    checkpoint = quantized("compressed-tensors NVFP4")
    name = EXPERT + "down_proj.weight_global_scale"
    checkpoint.tensors[name] = 1 / checkpoint.tensors[name]
    message = refusal(checkpoint, tmp_path, "nvfp4")
    assert f"tensor {name}: read as a divisor, it implies a largest weight of" in message
    assert "it seems to be a factor" in message


def test_a_divisor_where_a_factor_is_stated_is_refused(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    name = EXPERT + "down_proj.weight_scale_2"
    checkpoint.tensors[name] = 1 / checkpoint.tensors[name]
    message = refusal(checkpoint, tmp_path, "nvfp4")
    assert f"tensor {name}: read as a factor" in message and "seems to be a divisor" in message


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("style", STYLES)
def test_a_scale_that_no_scale_can_be_is_named(style: str, value: float, tmp_path: Path) -> None:
    suffix = {"ModelOpt NVFP4": "weight_scale_2", "compressed-tensors FP8": "weight_scale"}
    checkpoint = quantized(style)
    name = f"{EXPERT}up_proj.{suffix.get(style, 'weight_global_scale')}"
    checkpoint.tensors[name].view(-1)[-1] = value
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"tensor {name}: expected finite scales above 0" in message


@pytest.mark.parametrize(
    ("style", "suffix", "byte"),
    [
        ("compressed-tensors FP8", "weight", 0x7F),
        ("compressed-tensors FP8", "weight", 0xFF),
        ("ModelOpt NVFP4", "weight_scale", 0x7F),
        ("ModelOpt NVFP4", "weight_scale", 0x90),
        ("compressed-tensors NVFP4", "weight_scale", 0xFF),
    ],
)
def test_codes_that_are_no_number_are_named(
    style: str, suffix: str, byte: int, tmp_path: Path
) -> None:
    checkpoint = quantized(style)
    name = EXPERT + "gate_proj." + suffix
    checkpoint.tensors[name].view(torch.uint8)[7, 3] = byte
    message = refusal(checkpoint, tmp_path, precision_of(style))
    assert f"tensor {name}: holds NaN" in message


def test_nan_in_a_weight_that_is_only_copied_is_named(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4")
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    checkpoint.tensors[name][3, 4] = float("nan")
    assert f"tensor {name}: holds NaN or infinity" in refusal(checkpoint, tmp_path, "nvfp4")
