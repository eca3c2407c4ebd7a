"""The oracle: Hugging Face's DiffusionGemma under draws that are given, recorded step by step.

Only the random draws are replaced, each where HF makes it; what is sampled from a distribution
follows the tape's rule, written here a second time and in numpy.
Shapes: P prompt tokens, C canvases, N denoise steps, L canvas length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.diffusion_gemma import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaTextRouter
from transformers.utils import logging

from dgemma.replay import Tape

ROUTER_MARGIN = 1e-5  # some five times what two fp32 implementations make of a score
Probabilities = npt.NDArray[np.float32]  # [L, V]
Sample = Callable[[int, int, Probabilities], npt.NDArray[np.int64]]  # canvas, step -> ids [L]


@dataclass
class Record:
    """What HF decided; one entry per step that ran, canvas by canvas."""

    sequences: npt.NDArray[np.int64]  # [P + C * L]
    canvas: list[list[Tensor]]  # int64 [L], what the step denoises
    logits: list[list[Tensor]]  # fp32 [L, V], divided by the temperature
    entropy: list[list[Tensor]]  # fp32 [L], nats
    accepted: list[list[Tensor]]  # bool [L]

    @property
    def steps(self) -> list[int]:
        return [len(steps) for steps in self.logits]


class HuggingFace:
    """A checkpoint in fp32 (or `dtype`) with sdpa attention and a dynamic cache."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.model = DiffusionGemmaForBlockDiffusion.from_pretrained(
            checkpoint,
            dtype=dtype,
            attn_implementation="sdpa",
            experts_implementation="eager",
        ).eval()
        self.length = int(self.model.config.canvas_length)
        self.settings = self.model.generation_config
        self.router_margin = float("inf")
        for module in self.model.modules():
            if isinstance(module, DiffusionGemmaTextRouter):
                module.register_forward_hook(self._watch)

    @property
    def routes_clearly(self) -> bool:
        """Whether every expert chosen so far led those that were not by more than rounding."""
        return self.router_margin > ROUTER_MARGIN

    def _watch(self, router: Any, _: Any, output: tuple[Tensor, ...]) -> None:
        k = router.config.top_k_experts
        ranked = output[0].float().sort(-1, descending=True).values
        if k < ranked.shape[-1]:
            least = (ranked[..., k - 1] / ranked[..., k]).log().min().item()
            self.router_margin = min(self.router_margin, least)

    @torch.inference_mode()
    def encode(self, ids: Tensor, cache: DynamicCache | None = None) -> tuple[Tensor, DynamicCache]:
        """Last hidden states `[T, D]` of ids `[T]` behind what the cache holds, and the cache."""
        cache = DynamicCache(config=self.model.config.text_config) if cache is None else cache
        out = self.model.model.encoder(input_ids=ids[None], past_key_values=cache)
        return out.last_hidden_state[0], cache

    @torch.inference_mode()
    def denoise(self, canvas: Tensor, cache: DynamicCache, logits: Tensor | None = None) -> Tensor:
        """Last hidden states `[L, D]` of a canvas; `logits [L, V]` of the step before, if any."""
        out = self.model.model.decoder(
            decoder_input_ids=canvas[None],
            past_key_values=cache,
            self_conditioning_logits=None if logits is None else logits[None],
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped logits `[.., V]` of last hidden states, as HF's own head computes them."""
        cap = self.model.final_logit_softcapping
        return torch.tanh(self.model.lm_head(hidden) / cap) * cap

    def generate(self, tape: Tape) -> Record:
        """HF's `generate` on the tape's prompt, all draws from the tape."""

        def sample(canvas: int, step: int, p: Probabilities) -> npt.NDArray[np.int64]:
            return invert(p, tape.uniform[canvas, step])[0]

        return self._generate(tape, sample)

    def settle(self, tape: Tape, margin: float, seed: int) -> Record:
        """As `generate`, but numbers in `tape.uniform` too near to a decision are drawn again.

        Afterwards the tape is what was played: `generate` and any network that agrees with HF's
        distributions to less than `margin` sample the same tokens under it.
        """
        rng = np.random.default_rng(seed)

        def sample(canvas: int, step: int, p: Probabilities) -> npt.NDArray[np.int64]:
            u = tape.uniform[canvas, step]
            for _ in range(1000):
                ids, lead = invert(p, u)
                close = lead < margin
                if not close.any():
                    return ids
                u[close] = rng.random(int(close.sum()))
            raise AssertionError(f"no number is {margin} from every border of this distribution")

        return self._generate(tape, sample)

    @torch.no_grad()
    def _generate(self, tape: Tape, sample: Sample) -> Record:
        record = Record(np.empty(0, np.int64), [], [], [], [])

        def prepare(settings: Any) -> TapedSampler:
            text = self.model.config.text_config
            sampler = TapedSampler(
                settings.sampler_config,
                self.length,
                text.vocab_size,
                settings.max_denoising_steps,
            )
            sampler.tape, sampler.record = tape, record
            return sampler

        def multinomial(probabilities: Tensor, num_samples: int) -> Tensor:
            canvas, step = len(record.logits) - 1, len(record.logits[-1])
            return torch.from_numpy(sample(canvas, step, probabilities.numpy()))[:, None]

        self.model._prepare_sampler = prepare
        with _multinomial(multinomial):
            out = self.model.generate(
                torch.from_numpy(tape.input_ids)[None], max_new_tokens=tape.max_new_tokens
            )
        record.sequences = out.sequences[0].numpy()
        return record


class TapedSampler(generation.EntropyBoundSampler):
    """HF's sampler with canvases from a tape. HF draws fresh tokens in one place for both uses."""

    tape: Tape
    record: Record
    renoising = False

    def initialize_canvas(self, batch_size: int, device: torch.device) -> Tensor:
        record = self.record
        if self.renoising:
            at = len(record.logits) - 1, len(record.logits[-1]) - 1
            return torch.from_numpy(self.tape.renoise[at])[None]
        for steps in (record.canvas, record.logits, record.entropy, record.accepted):
            steps.append([])
        return torch.from_numpy(self.tape.init[len(record.logits) - 1])[None]

    def accept_canvas(
        self, current_canvas: Tensor, denoiser_canvas: Tensor, logits: Tensor, cur_step: int
    ) -> Tensor:
        accepted: Tensor = super().accept_canvas(current_canvas, denoiser_canvas, logits, cur_step)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        self.record.canvas[-1].append(current_canvas[0].clone())
        self.record.logits[-1].append(logits[0].clone())
        self.record.entropy[-1].append(entropy[0])
        self.record.accepted[-1].append(self.accepted_token_mask[0].clone())
        return accepted

    def renoise_canvas(self, accepted_canvas: Tensor, cur_step: int) -> Tensor:
        self.renoising = True
        try:
            renoised: Tensor = super().renoise_canvas(accepted_canvas, cur_step)
        finally:
            self.renoising = False
        return renoised


def invert(
    p: Probabilities, u: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """First ids whose cumulative probability exceeds u, and u's distance from any other choice."""
    cumulative = np.cumsum(p.astype(np.float64), -1)
    cumulative /= cumulative[:, -1:]
    last = p.shape[1] - 1
    ids = np.array(
        [
            min(last, int(np.searchsorted(line, x, side="right")))
            for line, x in zip(cumulative, u, strict=True)
        ]
    )
    rows = np.arange(len(ids))
    above = np.where(ids == last, np.inf, cumulative[rows, ids] - u)
    below = np.where(ids == 0, np.inf, u - cumulative[rows, np.maximum(ids - 1, 0)])
    return ids, np.minimum(above, below)


@dataclass(frozen=True)
class _Torch:
    """The torch that HF's generation sees: torch itself, but for one function."""

    multinomial: Callable[..., Tensor]
    module: Any = field(default=torch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@contextmanager
def _multinomial(replacement: Callable[..., Tensor]) -> Iterator[None]:
    generation.torch = _Torch(replacement)
    try:
        yield
    finally:
        generation.torch = torch
