from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import (
    DTYPES,
    FORMATS,
    PRECISIONS,
    Policy,
    TensorSpec,
    policy_of,
    tensors,
)
from tests.quantized_checkpoint import GEOMETRY

BANK = "layers.3.experts.gate_up_proj"
SHAPES = parameter_shapes(GEOMETRY)


@pytest.mark.parametrize(
    ("format", "specs"),
    [
        ("fp32", {"": ("F32", (5, 6, 128))}),
        ("bf16", {"": ("BF16", (5, 6, 128))}),
        ("fp8", {"": ("F8_E4M3", (5, 6, 128)), ".row_scale": ("F32", (5, 6, 1))}),
        ("int4", {"": ("U8", (5, 6, 64)), ".block_scale": ("BF16", (5, 6, 2))}),
        (
            "nvfp4",
            {
                "": ("U8", (5, 6, 64)),
                ".block_scale": ("F8_E4M3", (5, 6, 8)),
                ".row_scale": ("F32", (5, 6, 1)),
            },
        ),
    ],
)
def test_each_format_lays_out_a_bank_of_experts(
    format: str, specs: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    wanted = {BANK + suffix: TensorSpec(*spec) for suffix, spec in specs.items()}
    assert tensors(FORMATS[format], BANK, (5, 6, 128)) == wanted


@pytest.mark.parametrize(
    ("format", "bits"), [("fp8", 8), ("int4", 4 + 16 / 64), ("nvfp4", 4 + 8 / 16)]
)
def test_bytes_are_those_of_the_formats_bits(format: str, bits: float) -> None:
    specs = tensors(FORMATS[format], "w", (1408, 2816))
    row_scales = 4 * 1408 if FORMATS[format].row_scale else 0
    assert sum(spec.nbytes for spec in specs.values()) == 1408 * 2816 * bits / 8 + row_scales


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtypes_size_is_torchs(dtype: str) -> None:
    spec = TensorSpec(dtype, (2, 3))
    assert spec.nbytes == torch.empty(2, 3, dtype=spec.torch_dtype).nbytes


@pytest.mark.parametrize(
    ("format", "shape", "multiple"),
    [("int4", (8, 96), 64), ("nvfp4", (8, 72), 16), ("int4", (64,), 64), ("nvfp4", (4, 8, 8), 16)],
)
def test_columns_that_do_not_fill_groups_are_refused_by_name(
    format: str, shape: tuple[int, ...], multiple: int
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{BANK}: {format} .* multiple of {multiple}"):
        tensors(FORMATS[format], BANK, shape)


def test_a_policy_is_the_same_after_a_way_through_json() -> None:
    for policies in PRECISIONS.values():
        for policy in policies.values():
            assert Policy.from_dict(policy.to_dict()) == policy


@pytest.mark.parametrize(
    "data",
    [
        {"rules": []},
        {"rest": "bf16"},
        {"rules": [["*", "fp7"]], "rest": "bf16"},
        {"rules": [["*"]], "rest": "bf16"},
        {"rules": [], "rest": "fp7"},
    ],
)
def test_foreign_data_is_no_policy(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        Policy.from_dict(data)


def test_the_first_rule_that_matches_decides() -> None:
    policy = Policy((("layers.0.*", "fp8"), ("layers.*", "int4")), "bf16")
    names = ("layers.0.x", "layers.1.x", "norm.weight")
    assert [policy.format_of(name).name for name in names] == ["fp8", "int4", "bf16"]


@pytest.mark.parametrize("precision", ["fp8", "int4", "nvfp4"])
def test_all_linear_layers_are_quantised_and_nothing_else(precision: str) -> None:
    policy = policy_of(precision, "all")
    quantized = {name for name in SHAPES if policy.format_of(name).is_quantized}
    never = ("norm", "router", "scalar", "embed", "self_conditioning")
    assert quantized == {name for name in SHAPES if not any(part in name for part in never)}
    assert {policy.format_of(name).name for name in SHAPES} == {precision, "bf16"}


def test_the_published_count_of_quantised_matrices_of_the_26b_network() -> None:
    """128 experts of three matrices, three dense ones and the attention's, in 30 layers."""
    sliding, full = GEOMETRY.layers
    layers = tuple(full if i % 6 == 5 else sliding for i in range(30))
    shapes = parameter_shapes(replace(GEOMETRY, layers=layers))
    policy = policy_of("fp8")
    quantized = [name for name in shapes if policy.format_of(name).is_quantized]
    banks = sum(".experts." in name for name in quantized)
    assert len(quantized) - banks + 128 * 3 * banks // 2 == 11_725


@pytest.mark.parametrize(
    ("precision", "default"), [("fp8", "all"), ("int4", "feed_forward"), ("nvfp4", "experts")]
)
def test_each_precision_has_a_default(precision: str, default: str) -> None:
    assert policy_of(precision) == policy_of(precision, default)
    experts = policy_of(precision, "experts")
    assert {n for n in SHAPES if experts.format_of(n).is_quantized} == {
        n for n in SHAPES if ".experts." in n
    }


@pytest.mark.parametrize("precision", ["fp8", "int4", "nvfp4"])
def test_attention_may_be_left_as_it_is(precision: str) -> None:
    everything, some = policy_of(precision, "all"), policy_of(precision, "feed_forward")
    for name in SHAPES:
        left = ".self_attn." in name
        assert some.format_of(name) == (FORMATS["bf16"] if left else everything.format_of(name))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_some_precisions_quantise_nothing(precision: str) -> None:
    assert {policy_of(precision).format_of(name).name for name in SHAPES} == {precision}


def test_an_unknown_precision_or_policy_is_refused_with_what_is_known() -> None:
    with pytest.raises(ConfigurationError, match="'fp7' is not known; known: fp32, bf16, fp8"):
        policy_of("fp7")
    with pytest.raises(ConfigurationError, match="'half'; known: all, feed_forward, experts"):
        policy_of("fp8", "half")


def test_a_stores_tensors_come_in_the_order_of_its_parameters() -> None:
    specs = policy_of("int4").tensors({"norm.weight": (4,), "layers.0.mlp.up_proj.weight": (8, 64)})
    assert list(specs) == [
        "norm.weight",
        "layers.0.mlp.up_proj.weight",
        "layers.0.mlp.up_proj.weight.block_scale",
    ]


def test_the_definition_is_read_without_torch() -> None:
    command = "import sys, dgemma.precision; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
