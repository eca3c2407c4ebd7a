"""Hugging Face's implementation on the same weights and device: what everything is held against.

Knows how to fill its model without a checkpoint, and times its own `generate`; transformers is
needed for this alone.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgemma.bench.report import Peer
from dgemma.bench.timing import milliseconds
from dgemma.dequantize import dequantize
from dgemma.engine.torch_weights import WeightReader
from dgemma.model.checkpoint import hf_name, parameter_shapes

SYSTEM = "Hugging Face generate"
EXPERTS = "grouped_mm"  # the fastest of its implementations
SMALL = 1e-30  # a confidence that no canvas reaches: all steps are run


def time_peer(config: Path, weights: WeightReader, device: torch.device, steps: int) -> Peer:
    """One canvas of `steps` steps behind a prompt of one canvas; skipped without transformers.

    `config` is the directory of the `config.json` that the weights' geometry was read from.
    """
    try:
        classes = importlib.import_module("transformers.models.diffusion_gemma")
    except ImportError as error:
        return _skipped("unknown", f"transformers has no DiffusionGemma here: {error}")
    version = str(importlib.import_module("transformers").__version__)
    try:
        model = _model(classes, config, weights, device)
    except torch.OutOfMemoryError as error:
        return _skipped(version, f"no memory for its weights: {error}")
    length = weights.geometry.canvas_length
    prompt = torch.arange(length, device=device)[None] % 32 + 64  # no special token of any kind

    def generate() -> object:
        return model.generate(
            prompt,
            max_new_tokens=length,
            max_denoising_steps=steps,
            confidence_threshold=SMALL,
            eos_token_id=None,
        )

    with torch.inference_mode():
        generate()
        ms = milliseconds(generate, device)
    return Peer(
        system=SYSTEM,
        version=version,
        outcome="passed",
        detail=f"one request, experts by {EXPERTS}",
        steps=steps,
        ms_per_step=ms / steps,
        tokens_per_s=1e3 * length / ms,
    )


def _skipped(version: str, why: str) -> Peer:
    return Peer(system=SYSTEM, version=version, outcome="skipped", detail=why)


def _model(classes: Any, config: Path, weights: WeightReader, device: torch.device) -> Any:
    """Its model with our weights, de-quantised one by one into its own memory."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = classes.DiffusionGemmaForBlockDiffusion(
                classes.DiffusionGemmaConfig.from_pretrained(config)
            ).eval()
    finally:
        torch.set_default_dtype(before)
    model.set_experts_implementation(EXPERTS)
    # Tied ones have several names.
    theirs = dict(model.named_parameters(remove_duplicate=False))
    theirs |= dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name in parameter_shapes(weights.geometry):
            theirs[hf_name(name)].copy_(_real(weights, name))
    return model


def _real(weights: WeightReader, name: str) -> Tensor:
    weight = weights.weight(name)
    if not weight.format.is_quantized:
        return weight.payload
    return dequantize(weight.format, weight.payload, weight.block_scale, weight.row_scale)
