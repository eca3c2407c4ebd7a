"""Networks with random weights, and checkpoints of them with any tensors one likes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.geometry import Geometry, Rope
from dgemma.model.checkpoint import hf_name
from dgemma.model.network import Network


def random_network(geometry: Geometry, seed: int = 0, fused: bool = False) -> Network:
    """Every weight random, norms around one, so that nothing is left untested by being neutral."""
    network = Network(geometry, fused)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        width = parameter.shape[-1]
        parameter.data = 1 + 0.2 * values if parameter.ndim < 2 else 1.5 * values / width**0.5
        parameter.requires_grad_(False)
    return network


def hf_tensors(network: Network) -> dict[str, Tensor]:
    return {hf_name(name): p.detach().clone() for name, p in network.named_parameters()}


def config_of(geometry: Geometry) -> dict[str, Any]:
    """`config.json`; sizes of single layers are written as HF writes them."""
    first = geometry.layers[0]

    def rope(of: Rope) -> dict[str, Any]:
        factor = {"partial_rotary_factor": of.partial_rotary_factor}
        return {
            "rope_type": of.rope_type,
            "rope_theta": of.rope_theta,
            **(factor if of.rope_type == "proportional" else {}),
        }

    text = {
        key: getattr(geometry, key)
        for key in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
            *("sliding_window", "num_experts", "top_k_experts", "moe_intermediate_size"),
            *("max_position_embeddings", "final_logit_softcapping", "rms_norm_eps"),
        )
    }
    text |= {
        "num_hidden_layers": len(geometry.layers),
        "layer_types": [layer.layer_type for layer in geometry.layers],
        "head_dim": first.head_dim,
        "num_key_value_heads": first.num_key_value_heads,
        "per_layer_config": {
            str(index): {
                "head_dim": layer.head_dim,
                "num_key_value_heads": layer.num_key_value_heads,
            }
            for index, layer in enumerate(geometry.layers)
        },
        "rope_parameters": {
            "sliding_attention": rope(geometry.sliding_rope),
            "full_attention": rope(geometry.full_rope),
        },
    }
    return {"canvas_length": geometry.canvas_length, "text_config": text}


def write_weights(directory: Path, geometry: Geometry, tensors: dict[str, Tensor]) -> Path:
    """`config.json` and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_of(geometry)))
    save_file(tensors, directory / "model.safetensors")
    return directory


def shard(directory: Path, parts: int) -> None:
    """Turn `model.safetensors` into shards with an index."""
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        mine = names[part::parts]
        save_file({name: tensors[name] for name in mine}, directory / file)
        table |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 0}, "weight_map": table}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
