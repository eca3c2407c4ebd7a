"""Random tiny checkpoints in Hugging Face's layout, written by Hugging Face's own classes.

So what our loader reads is what `transformers` writes. Weights are drawn such that distributions
over the vocabulary are neither flat nor one-hot, and no weight is neutral (no norm is one, no
encoder scalar is its decoder's).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgemma_build.demo.vocabulary import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PAD,
    TURN_END,
    VOCAB_SIZE,
    save_tokenizer,
)
from tests.tiny_checkpoint import CHAT_TEMPLATE

FULL, SLIDING = "full_attention", "sliding_attention"
CANVAS = 32
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, SLIDING, FULL],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "sliding_window": 20,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "position_embedding_size": 8,
}
GENERATION: dict[str, Any] = {
    "max_new_tokens": 96,
    "max_denoising_steps": 8,
    "sampler_config": {"entropy_bound": 2.0, "_cls_name": "EntropyBoundSamplerConfig"},
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.5,
    "bos_token_id": BOS,
    "pad_token_id": PAD,
    "eos_token_id": [EOS, TURN_END],
}
# Sharp attention and strong self-conditioning would amplify rounding by hundreds from step to step,
# in HF's network as in ours. The embedding's gain is the standard deviation of the logits.
GAINS = {
    "q_norm.weight": 0.5,
    "k_norm.weight": 0.5,
    "self_conditioning.down_proj.weight": 0.4,
    "embed_tokens.weight": 1.6,
}

# A text configuration whose matrices have columns of whole groups of 64, as the real ones have.
WHOLE_GROUPS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": [SLIDING, FULL],
    "num_hidden_layers": 2,
}


def write_tiny_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    canvas_length: int = CANVAS,
    generation: Mapping[str, Any] | None = None,
    **text_overrides: Any,
) -> Path:
    """A whole random checkpoint with the demo's tokenizer and chat template.

    `text_overrides` replace values of `TEXT`, `generation` those of `GENERATION`.
    """
    from transformers.models.diffusion_gemma import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
    )

    config = DiffusionGemmaConfig(
        text_config=TEXT | text_overrides,
        vision_config=VISION,
        canvas_length=canvas_length,
        boi_token_id=IMAGE_START,
        eoi_token_id=IMAGE_END,
        image_token_id=IMAGE,
    )
    model = DiffusionGemmaForBlockDiffusion(config)
    randomise(model, seed)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    _add_softcap(directory, text_overrides)
    settings = json.dumps(GENERATION | dict(generation or {}), indent=1)
    (directory / "generation_config.json").write_text(settings)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())
    save_tokenizer(directory)
    return directory


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter and every layer scalar; `named_parameters` lists tied ones once."""
    generator = torch.Generator().manual_seed(seed)
    scalars = [(name, b) for name, b in model.named_buffers() if name.endswith("layer_scalar")]
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *scalars]:
            noise = torch.randn(tensor.shape, generator=generator)
            size = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0)
            if tensor.ndim < 2:
                tensor.copy_(size * (1 + 0.2 * noise))
            else:
                tensor.copy_(size * noise / tensor.shape[-1] ** 0.5)


def _add_softcap(directory: Path, overrides: Mapping[str, Any]) -> None:
    """HF reads `final_logit_softcapping` but does not write it."""
    if "final_logit_softcapping" in overrides:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["text_config"]["final_logit_softcapping"] = overrides["final_logit_softcapping"]
        path.write_text(json.dumps(config, indent=1))


@dataclass(frozen=True)
class Case:
    """A network's geometry, its generation settings, and a prompt for it."""

    seed: int
    canvas_length: int
    canvases: int
    prompt: list[int]
    text: dict[str, Any] = field(repr=False)
    generation: dict[str, Any]

    @property
    def context(self) -> int:
        """Tokens of the prompt and of all canvases."""
        return len(self.prompt) + self.canvases * self.canvas_length

    def again(self, attempts: int = 20) -> Iterator[Case]:
        """This case, then the same with other weights: for tests that need clear decisions."""
        for attempt in range(attempts):
            yield replace(self, seed=self.seed + 1000 * attempt)
        raise AssertionError(f"no weights of {attempts} decide this case clearly: {self}")

    def write(self, directory: Path) -> Path:
        return write_tiny_checkpoint(
            directory,
            seed=self.seed,
            canvas_length=self.canvas_length,
            generation=self.generation,
            **self.text,
        )


def draw_case(seed: int, **text_overrides: Any) -> Case:
    """Any geometry and settings that HF takes, small enough to run in milliseconds.

    Windows are shorter and longer than the prompt and than a canvas, heads and K/V heads of full
    layers differ from those of sliding layers, one to three experts serve a token.
    """
    rng = random.Random(f"geometry {seed}")
    heads = rng.choice([2, 4, 6])
    groups = [n for n in range(1, heads + 1) if heads % n == 0]
    canvas = rng.choice([24, 32, 40, 56, 64])
    prompt = rng.choice([3, canvas - 1, canvas, canvas + 1, 2 * canvas + 7])
    experts = rng.choice([3, 4, 6, 9, 12])
    layers = rng.choice(["F", "SF", "SSF", "FSF", "SFSF", "SSSF", "FFSSF"])
    text = {
        "layer_types": [FULL if kind == "F" else SLIDING for kind in layers],
        "num_hidden_layers": len(layers),
        "hidden_size": rng.choice([32, 48, 56]),
        "intermediate_size": rng.choice([40, 64]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice(groups),
        "num_global_key_value_heads": rng.choice(groups),
        "head_dim": rng.choice([8, 16]),
        "global_head_dim": rng.choice([8, 16, 32]),
        "sliding_window": rng.choice([5, canvas // 2, canvas + 3, prompt + 1, 5 * canvas + 8]),
        "num_experts": experts,
        "top_k_experts": rng.randint(1, 3),
        "moe_intermediate_size": rng.choice([8, 24]),
        "final_logit_softcapping": rng.choice([10.0, 30.0]),
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": rng.choice([50.0, 10_000.0])},
            FULL: {
                "rope_type": "proportional",
                "rope_theta": rng.choice([100.0, 1_000_000.0]),
                "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0]),
            },
        },
    }
    t_min = rng.choice([0.3, 0.4, 0.6])
    generation = {
        "max_denoising_steps": rng.randint(3, 8),
        "sampler_config": {
            "entropy_bound": rng.choice([0.1, 1.0, 4.0, 15.0]),
            "_cls_name": "EntropyBoundSamplerConfig",
        },
        "t_min": t_min,
        "t_max": t_min + rng.choice([0.1, 0.4]),
        "stability_threshold": rng.randint(0, 2),
        "confidence_threshold": rng.choice([0.005, 1.0, 2.0, 3.0]),
        # Ids so many that some answers stop in the first canvas, some later and some never.
        "eos_token_id": rng.sample(range(VOCAB_SIZE), rng.choice([1, 3, 8])),
    }
    return Case(
        seed=seed,
        canvas_length=canvas,
        canvases=rng.randint(2, 3),
        prompt=[BOS, *(rng.randrange(IMAGE_END + 1, VOCAB_SIZE) for _ in range(prompt - 1))],
        text=text | text_overrides,
        generation=generation,
    )
