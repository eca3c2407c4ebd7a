"""How public checkpoints that are already quantised lay their tensors out.

Knows what ModelOpt and compressed-tensors write into a checkpoint's configuration and which of it
this software can take over; knows nothing of the tensors' contents.
https://nvidia.github.io/Model-Optimizer (unified Hugging Face checkpoint)
https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from dgemma.errors import ConfigurationError
from dgemma.geometry import read_config
from dgemma.precision import FORMATS

MODELOPT_FILE = "hf_quant_config.json"
KNOWN = "known: ModelOpt NVFP4, compressed-tensors FP8 and NVFP4"


@dataclass(frozen=True)
class Layout:
    """The tensors of a quantised linear layer, by the last part of their names."""

    name: str
    format: str
    payload: str
    block_scale: str | None
    row_scale: str
    input_scale: str  # not taken over: activations are scaled where they are computed
    row_scale_divides: bool = False
    static_activations: bool = False  # then a layer without its input scale is incomplete


MODELOPT_NVFP4 = Layout(
    "ModelOpt NVFP4", "nvfp4", "weight", "weight_scale", "weight_scale_2", "input_scale"
)
TENSORS_NVFP4 = Layout(
    "compressed-tensors NVFP4",
    "nvfp4",
    "weight_packed",
    "weight_scale",
    "weight_global_scale",
    "input_global_scale",
    row_scale_divides=True,
)
TENSORS_FP8 = Layout("compressed-tensors FP8", "fp8", "weight", None, "weight_scale", "input_scale")


class _Arguments(BaseModel):
    """compressed-tensors' `QuantizationArgs`, as far as they decide what the tensors mean."""

    num_bits: int
    type: str = "int"
    strategy: str | None = None
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool | Literal["local"] = False


class _Scheme(BaseModel):
    weights: _Arguments
    input_activations: _Arguments | None = None


class _CompressedTensors(BaseModel):
    config_groups: dict[str, _Scheme]


class _ModelOpt(BaseModel):
    quant_algo: str
    group_size: int | None = None


Model = TypeVar("Model", bound=BaseModel)


def layout_of(directory: Path) -> Layout | None:
    """How the checkpoint in `directory` is quantised; None where it states nothing of the kind.

    Raises ConfigurationError where it states what cannot be taken over.
    """
    config = read_config(directory)
    text = config.get("text_config")
    stated = config.get("quantization_config") or config.get("compression_config")
    if stated is None and isinstance(text, dict):
        stated = text.get("quantization_config")
    modelopt = directory / MODELOPT_FILE
    if modelopt.exists():
        return _modelopt(modelopt, "quantization", _read(modelopt).get("quantization"))
    if stated is None:
        return None
    path = directory / "config.json"
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if method == "modelopt":
        return _modelopt(path, "quantization_config", stated)
    if method == "compressed-tensors":
        return _compressed_tensors(path, stated)
    raise ConfigurationError(
        f"{path}: quantization_config.quant_method {method!r} cannot be taken over; {KNOWN}"
    )


def _modelopt(path: Path, key: str, stated: Any) -> Layout:
    parsed = _parse(_ModelOpt, path, key, stated)
    # The second is the same without scales for activations.
    if parsed.quant_algo not in ("NVFP4", "W4A16_NVFP4"):
        raise ConfigurationError(
            f"{path}: {key}.quant_algo {parsed.quant_algo!r} cannot be taken over; {KNOWN}"
        )
    size = parsed.group_size
    if size is None and isinstance(groups := stated.get("config_groups"), dict):
        schemes = _parse(_CompressedTensors, path, key, {"config_groups": groups})
        size = next((s.weights.group_size for s in schemes.config_groups.values()), None)
    _check_group_size(path, f"{key}.group_size", size)
    return MODELOPT_NVFP4


def _compressed_tensors(path: Path, stated: Any) -> Layout:
    key = "quantization_config.config_groups"
    parsed = _parse(_CompressedTensors, path, "quantization_config", stated)
    layouts = {
        _layout(path, f"{key}.{name}", scheme) for name, scheme in parsed.config_groups.items()
    }
    if len(layouts) != 1:
        found = ", ".join(sorted({layout.name for layout in layouts})) or "none"
        raise ConfigurationError(f"{path}: {key}: expected one scheme for all layers, got {found}")
    return layouts.pop()


def _layout(path: Path, key: str, scheme: _Scheme) -> Layout:
    weights = scheme.weights
    kind = (weights.type, weights.num_bits, weights.strategy)
    activations = scheme.input_activations
    static = activations is not None and activations.dynamic is False
    if not weights.symmetric:
        raise ConfigurationError(f"{path}: {key}.weights.symmetric: only true can be taken over")
    if kind == ("float", 4, "tensor_group"):
        _check_group_size(path, f"{key}.weights.group_size", weights.group_size)
        return replace(TENSORS_NVFP4, static_activations=static)
    if kind in (("float", 8, "channel"), ("float", 8, "tensor")):
        return replace(TENSORS_FP8, static_activations=static)
    if kind[:2] == ("int", 8):
        raise ConfigurationError(
            f"{path}: {key}: INT8 weights are not among the formats of this software; quantise the "
            "BF16 checkpoint with --precision fp8 or int4"
        )
    raise ConfigurationError(
        f"{path}: {key}.weights: {weights.type} of {weights.num_bits} bits with strategy "
        f"{weights.strategy!r} cannot be taken over; {KNOWN}"
    )


def _check_group_size(path: Path, key: str, size: int | None) -> None:
    wanted = FORMATS["nvfp4"].group_size
    if size != wanted:
        raise ConfigurationError(f"{path}: {key}: NVFP4 has groups of {wanted}, got {size}")


def _parse(model: type[Model], path: Path, key: str, stated: Any) -> Model:
    try:
        return model.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (key, *first["loc"])))
        raise ConfigurationError(f"{path}: {place}: {first['msg']}") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected a JSON object")
    return data
