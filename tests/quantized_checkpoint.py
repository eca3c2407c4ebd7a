"""Small checkpoints as others quantise them: random payloads and scales in each public layout.

Real values are decoded here with `ml_dtypes`, so that nothing of what is tested decides them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.geometry import FULL, SLIDING, Geometry, LayerGeometry
from dgemma.model.checkpoint import hf_name, parameter_shapes
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import config_of

# Every matrix has columns that fill the groups of every format.
GEOMETRY = replace(
    geometry_of(hidden_size=64, vocab_size=40),
    intermediate_size=128,
    moe_intermediate_size=64,
    num_experts=3,
    layers=(LayerGeometry(SLIDING, 32, 2), LayerGeometry(FULL, 64, 1)),
)
STYLES = ("ModelOpt NVFP4", "compressed-tensors NVFP4", "compressed-tensors FP8")


@dataclass
class Quantized:
    """What a checkpoint directory would hold, and the real values of the network's parameters."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    modelopt: dict[str, Any] | None  # `hf_quant_config.json`
    real: dict[str, Tensor]

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        if self.modelopt is not None:
            (directory / "hf_quant_config.json").write_text(json.dumps(self.modelopt))
        save_file(self.tensors, directory / "model.safetensors")
        return directory

    def rename(self, old: str, new: str) -> None:
        """Replace a part of every tensor's name."""
        self.tensors = {name.replace(old, new): t for name, t in self.tensors.items()}


def quantized(
    style: str, seed: int = 0, *, experts_only: bool | None = None, geometry: Geometry = GEOMETRY
) -> Quantized:
    """ModelOpt quantises the experts alone, as in NVIDIA's checkpoint; the others all linears."""
    experts_only = style.startswith("ModelOpt") if experts_only is None else experts_only
    generator = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    real: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(geometry).items():
        is_linear = ".mlp." in name or ("self_attn." in name and "norm" not in name)
        if ".experts." not in name and (experts_only or not is_linear):
            values = generator.standard_normal(shape) + (len(shape) == 1)
            tensors[hf_name(name)] = torch.from_numpy(values).bfloat16()
            real[name] = tensors[hf_name(name)].float()
            continue
        parts = []
        for module, rows, columns in _modules(hf_name(name), shape):
            layer, values = _linear(style, generator, rows, columns)
            tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in layer.items()}
            parts.append(values)
        real[name] = torch.from_numpy(np.concatenate(parts)).view(shape)
    config = config_of(geometry)
    if not style.startswith("ModelOpt"):
        config["quantization_config"] = compressed_tensors(style)
        return Quantized(tensors, config, None, real)
    algorithm = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["*self_attn*"]}
    return Quantized(tensors, config, {"quantization": algorithm}, real)


def compressed_tensors(style: str) -> dict[str, Any]:
    """`quantization_config` as llm-compressor writes it."""
    nvfp4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    fp8 = {"num_bits": 8, "type": "float", "strategy": "channel", "group_size": None}
    weights, dynamic = (nvfp4, "local") if style.endswith("NVFP4") else (fp8, True)
    activations = weights | {"dynamic": dynamic}
    if style.endswith("FP8"):
        activations |= {"strategy": "token"}
    group = {"weights": weights, "input_activations": activations, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*router.*"],
    }


def _modules(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(name, rows, columns) of the split linear layers, gate before up."""
    if name.endswith(".weight"):
        yield name.removesuffix(".weight"), shape[0], shape[1]
        return
    bank, _, part = name.rpartition(".")
    for expert in range(shape[0]):
        if part == "gate_up_proj":
            yield f"{bank}.{expert}.gate_proj", shape[1] // 2, shape[2]
            yield f"{bank}.{expert}.up_proj", shape[1] // 2, shape[2]
        else:
            yield f"{bank}.{expert}.down_proj", shape[1], shape[2]


def _linear(
    style: str, generator: np.random.Generator, rows: int, columns: int
) -> tuple[dict[str, Tensor], np.ndarray[Any, Any]]:
    """The tensors of one quantised layer, and its real weights in fp32."""
    if style == "compressed-tensors FP8":
        payload = generator.integers(0, 256, (rows, columns), np.uint8)
        payload[payload & 0x7F == 0x7F] = 0x38  # not a number
        scale = torch.from_numpy(generator.uniform(1e-4, 2e-3, (rows, 1))).bfloat16()
        values = payload.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale.float().numpy()
        weight = torch.from_numpy(payload).view(torch.float8_e4m3fn)
        return {"weight": weight, "weight_scale": scale}, values
    packed = generator.integers(0, 256, (rows, columns // 2), np.uint8)
    nibbles = np.stack([packed % 16, packed // 16], -1).reshape(rows, columns)
    codes = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    blocks = generator.integers(0x20, 0x7F, (rows, columns // 16), np.uint8)
    factors = np.repeat(blocks.view(ml_dtypes.float8_e4m3fn).astype(np.float32), 16, -1)
    factor = np.float32(generator.uniform(1e-4, 1e-3))
    layer = {"weight_scale": torch.from_numpy(blocks).view(torch.float8_e4m3fn)}
    payload = torch.from_numpy(packed)
    if style == "ModelOpt NVFP4":
        layer |= {"weight": payload, "weight_scale_2": torch.tensor(factor)}
        return layer | {"input_scale": torch.tensor(0.01)}, codes * factors * factor
    divisor = np.float32(1) / factor
    layer |= {"weight_packed": payload, "weight_global_scale": torch.tensor([divisor])}
    layer |= {"input_global_scale": torch.tensor([120.0])}
    return layer, codes * factors * (np.float32(1) / divisor)
