"""Writes a training run as a Hugging Face checkpoint: `python -m dgemma_build.demo.export`.

Knows HF's file layout and tensor names; knows nothing of training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma_build.demo.net import Shape
from dgemma_build.demo.vocabulary import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PAD,
    TURN_END,
    save_tokenizer,
)

CONTEXT = 1024


def config(shape: Shape) -> dict[str, Any]:
    """`config.json`; the vision tower that HF insists on is as small as it can be."""
    layers = range(shape.num_hidden_layers)
    theta = shape.rope_theta
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "dtype": "float32",
        "canvas_length": shape.canvas_length,
        "tie_word_embeddings": True,
        "boi_token_id": IMAGE_START,
        "eoi_token_id": IMAGE_END,
        "image_token_id": IMAGE,
        "text_config": {
            "model_type": "diffusion_gemma_text",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "global_head_dim": shape.global_head_dim,
            "num_global_key_value_heads": shape.num_global_key_value_heads,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": shape.rms_norm_eps,
            "sliding_window": shape.sliding_window,
            "layer_types": [
                "full_attention" if shape.is_full(i) else "sliding_attention" for i in layers
            ],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": theta},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": theta,
                    "partial_rotary_factor": shape.partial_rotary_factor,
                },
            },
            "num_experts": shape.num_experts,
            "top_k_experts": shape.top_k_experts,
            "moe_intermediate_size": shape.moe_intermediate_size,
            "tie_word_embeddings": True,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "bos_token_id": BOS,
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    }


def generation_config() -> dict[str, Any]:
    """The sampler's settings, those of the published checkpoint but for the stop ids."""
    return {
        "max_new_tokens": 384,
        "max_denoising_steps": 48,
        "sampler_config": {"entropy_bound": 0.1, "_cls_name": "EntropyBoundSamplerConfig"},
        "t_min": 0.4,
        "t_max": 0.8,
        "stability_threshold": 1,
        "confidence_threshold": 0.005,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": [EOS, TURN_END],
    }


def hf_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if name.endswith("encoder_scalar"):
            index = name.split(".")[1]
            name = f"model.encoder.language_model.layers.{index}.layer_scalar"
        else:
            name = f"model.decoder.{name}"
        tensors[name] = value.detach().float().contiguous()
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="directory that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    args = parser.parse_args()
    state = torch.load(args.run / "state.pt", weights_only=False)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, content in (("config", config(Shape())), ("generation_config", generation_config())):
        (args.out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    save_tokenizer(args.out)
    tensors = hf_tensors(state["average"])
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    print(
        f"{args.out}: {sum(t.numel() for t in tensors.values()):,} parameters, step {state['step']}"
    )


if __name__ == "__main__":
    main()
