"""An engine against Hugging Face's implementation, on prompts: the first step of the next canvas.

Knows how to ask both for the same logits; transformers is needed for this alone, and so is memory
for the whole checkpoint beside the engine. A step is compared, and no text: one different token
changes everything after it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgemma.bench.report import HuggingFace
from dgemma.chat import ChatTokenizer
from dgemma.engine.base import Engine, Row
from dgemma.machine import host_memory
from dgemma.tail.statistics import Head

PROMPTS = ("Write a function that merges two sorted lists.", "What is the capital of Australia?")
SAME = 0.9  # share of positions, below which something is wrong and not only rounded
HEAD_ROOM = 1.2  # of a checkpoint's size, to load it


def compare_to_hugging_face(
    engine: Engine, checkpoint: Path, prompts: Sequence[str], free_bytes: int | None = None
) -> HuggingFace:
    """Skipped, with the reason, where transformers or the memory is not there."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    free = host_memory()[1] if free_bytes is None else free_bytes
    if size * HEAD_ROOM > free:
        return _skipped(f"{size} bytes of weights do not fit into {free} free bytes of host memory")
    try:
        classes = importlib.import_module("transformers.models.diffusion_gemma")
    except ImportError as error:
        return _skipped(f"transformers has no DiffusionGemma here: {error}")
    model = classes.DiffusionGemmaForBlockDiffusion.from_pretrained(
        checkpoint, dtype="auto", attn_implementation="sdpa", experts_implementation="eager"
    ).eval()
    tokenizer = ChatTokenizer.from_checkpoint(checkpoint)
    same = total = 0
    for index, prompt in enumerate(prompts):
        ids = torch.tensor(tokenizer.encode(prompt))
        canvas = _canvas(engine, index)
        ours, theirs = _ours(engine, ids, canvas), _theirs(model, ids, canvas)
        same += int((ours == theirs).sum())
        total += len(canvas)
    share = same / total
    return HuggingFace(
        prompts=len(prompts),
        positions=total,
        same_argmax=share,
        outcome="passed" if share >= SAME else "failed",
        detail=f"at least {SAME} is expected of two roundings of the same network",
    )


def _skipped(why: str) -> HuggingFace:
    return HuggingFace(prompts=0, positions=0, same_argmax=0.0, outcome="skipped", detail=why)


def _canvas(engine: Engine, seed: int) -> Tensor:
    g, generator = engine.geometry, torch.Generator().manual_seed(seed)
    return torch.randint(0, g.vocab_size, (g.canvas_length,), generator=generator)


def _ours(engine: Engine, ids: Tensor, canvas: Tensor) -> Tensor:
    length = engine.geometry.canvas_length
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        padded = torch.nn.functional.pad(part, (0, length - len(part)))
        engine.forward([Row(padded, 0, start, len(part), denoise=False)])
    hidden = engine.forward([Row(canvas, 0, len(ids), length, denoise=True)])
    head = Head(engine.embedding(), engine.geometry.final_logit_softcapping)
    best: list[Tensor] = []
    for position in hidden[0].split(16):  # logits of a few positions at a time
        one = torch.ones(1, 1, 1, device=hidden.device)
        scores = head.scores(position[None], one, 0, len(head.embedding))
        best.append(scores[0].argmax(-1).cpu())
    return torch.cat(best)


@torch.inference_mode()
def _theirs(model: Any, ids: Tensor, canvas: Tensor) -> Tensor:
    cache = importlib.import_module("transformers").DynamicCache(config=model.config.text_config)
    model.model.encoder(input_ids=ids[None], past_key_values=cache)
    out = model.model.decoder(
        decoder_input_ids=canvas[None], past_key_values=cache, self_conditioning_logits=None
    )
    # A soft-cap does not move the largest.
    best = [model.lm_head(part).argmax(-1) for part in out.last_hidden_state[0].split(16)]
    return torch.cat(best)
