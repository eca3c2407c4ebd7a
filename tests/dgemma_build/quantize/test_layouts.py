from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError
from dgemma_build.quantize.layouts import (
    MODELOPT_NVFP4,
    TENSORS_FP8,
    TENSORS_NVFP4,
    layout_of,
)
from tests.quantized_checkpoint import compressed_tensors

MODELOPT = {
    "producer": {"name": "modelopt", "version": "0.47"},
    "quantization": {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None},
}


def write(directory: Path, config: object, modelopt: object = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if modelopt is not None:
        (directory / "hf_quant_config.json").write_text(json.dumps(modelopt))
    return directory


def compressed(style: str, **weights: Any) -> dict[str, Any]:
    stated = copy.deepcopy(compressed_tensors(style))
    stated["config_groups"]["group_0"]["weights"] |= weights
    return {"quantization_config": stated}


def refusal(directory: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        layout_of(directory)
    return str(caught.value)


@pytest.mark.parametrize("config", [{}, {"text_config": {}}, {"quantization_config": None}])
def test_a_checkpoint_that_states_nothing_is_not_quantised(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    assert layout_of(write(tmp_path, config)) is None


@pytest.mark.parametrize("algorithm", ["NVFP4", "W4A16_NVFP4"])
def test_modelopt_is_known_by_its_own_file(tmp_path: Path, algorithm: str) -> None:
    stated = {"quantization": {"quant_algo": algorithm, "group_size": 16}}
    assert layout_of(write(tmp_path, {}, stated)) == MODELOPT_NVFP4


def test_modelopt_is_known_by_the_configuration(tmp_path: Path) -> None:
    groups = {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}
    stated = {"quant_method": "modelopt", "quant_algo": "NVFP4", "config_groups": groups}
    assert layout_of(write(tmp_path, {"quantization_config": stated})) == MODELOPT_NVFP4


@pytest.mark.parametrize(
    ("style", "layout"),
    [("compressed-tensors NVFP4", TENSORS_NVFP4), ("compressed-tensors FP8", TENSORS_FP8)],
)
@pytest.mark.parametrize("place", ["config", "text_config", "compression_config"])
def test_compressed_tensors_is_known_by_its_scheme(
    tmp_path: Path, style: str, layout: object, place: str
) -> None:
    config = compressed(style)
    if place == "text_config":
        config = {"text_config": config}
    if place == "compression_config":
        config = {"compression_config": config["quantization_config"]}
    assert layout_of(write(tmp_path, config)) == layout


@pytest.mark.parametrize("style", ["compressed-tensors NVFP4", "compressed-tensors FP8"])
def test_static_activations_need_their_scales(tmp_path: Path, style: str) -> None:
    config = compressed(style)
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"]["dynamic"] = False
    layout = layout_of(write(tmp_path, config))
    dynamic = TENSORS_NVFP4 if style.endswith("NVFP4") else TENSORS_FP8
    assert layout == replace(dynamic, static_activations=True)
    del group["input_activations"]
    assert layout_of(write(tmp_path, config)) == dynamic


def test_int8_is_refused_with_what_to_do(tmp_path: Path) -> None:
    config = compressed("compressed-tensors FP8", type="int")
    message = refusal(write(tmp_path, config))
    assert "config_groups.group_0: INT8 weights are not among the formats" in message
    assert "quantise the BF16 checkpoint with --precision fp8 or int4" in message


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"group_size": 32}, "group_0.weights.group_size: NVFP4 has groups of 16, got 32"),
        ({"group_size": None}, "NVFP4 has groups of 16, got None"),
        ({"strategy": "group"}, "float of 4 bits with strategy 'group' cannot be taken over"),
        ({"num_bits": 8, "strategy": "block"}, "float of 8 bits with strategy 'block' cannot"),
        ({"type": "int", "strategy": "group"}, "int of 4 bits with strategy 'group' cannot"),
        ({"symmetric": False}, "weights.symmetric: only true"),
        ({"num_bits": "four"}, "config_groups.group_0.weights.num_bits: Input should be a valid"),
    ],
)
def test_a_scheme_that_cannot_be_taken_over_is_refused_by_key(
    tmp_path: Path, weights: dict[str, Any], message: str
) -> None:
    got = refusal(write(tmp_path, compressed("compressed-tensors NVFP4", **weights)))
    assert message in got
    assert str(tmp_path / "config.json") in got


def test_several_schemes_are_refused(tmp_path: Path) -> None:
    config = compressed("compressed-tensors NVFP4")
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = compressed_tensors("compressed-tensors FP8")["config_groups"]["group_0"]
    message = refusal(write(tmp_path, config))
    assert "expected one scheme for all layers, got compressed-tensors FP8, comp" in message
    groups.clear()
    assert "got none" in refusal(write(tmp_path, config))


@pytest.mark.parametrize("method", ["gptq", "fp8", None])
def test_other_methods_are_refused_with_what_is_known(tmp_path: Path, method: object) -> None:
    message = refusal(write(tmp_path, {"quantization_config": {"quant_method": method}}))
    assert f"quant_method {method!r} cannot be taken over; known: ModelOpt NVFP4" in message


@pytest.mark.parametrize(
    ("modelopt", "message"),
    [
        ({"quantization": {"quant_algo": "FP8"}}, "quantization.quant_algo 'FP8' cannot be taken"),
        (
            {"quantization": {"quant_algo": "NVFP4", "group_size": 32}},
            "quantization.group_size: NVFP4 has groups of 16, got 32",
        ),
        ({"quantization": {"quant_algo": "NVFP4"}}, "NVFP4 has groups of 16, got None"),
        ({"quantization": {}}, "quantization.quant_algo: Field required"),
        ({}, "quantization: Input should be"),
        ([], "expected a JSON object"),
    ],
)
def test_modelopts_file_is_refused_by_key(tmp_path: Path, modelopt: object, message: str) -> None:
    got = refusal(write(tmp_path, {}, modelopt))
    assert message in got
    assert "hf_quant_config.json" in got


def test_modelopts_file_that_is_no_json(tmp_path: Path) -> None:
    (write(tmp_path, {}) / "hf_quant_config.json").write_text("{")
    assert "hf_quant_config.json: cannot be read as JSON" in refusal(tmp_path)
