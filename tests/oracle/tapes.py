"""Tapes for random cases, and how far from undecided the oracle's decisions under them are.

Two programs that agree to rounding agree in every decision only where no decision is close. So a
case whose decisions are closer than MARGIN is drawn again with other weights, as is a network that
magnifies rounding: the oracle's own logits are then too uncertain to hold another program's to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgemma.replay import Tape
from tests.oracle.checkpoints import Case
from tests.oracle.hugging_face import HuggingFace, Record

# Logits and entropies of two fp32 implementations differ by some 1e-5, sums of a distribution's
# probabilities by 1e-6, an expert's probability by less.
MARGIN = 1e-4
SAMPLE_MARGIN = 1e-5
# Most by which fp32 may move the oracle's logits from those in float64: a quarter of what another
# program's may differ by, and about twice what it moves those of most networks.
ROUNDING = 2.5e-5


@dataclass(frozen=True)
class Played:
    """A case whose every decision is clear, its files, and what HF did under its tape."""

    case: Case
    checkpoint: Path
    tape: Path
    hf: HuggingFace
    record: Record


def draw_tape(case: Case) -> Tape:
    steps = case.generation["max_denoising_steps"]
    shape = case.canvases, case.canvas_length
    vocabulary = case.text.get("vocab_size", 320)
    rng = np.random.default_rng(case.seed)
    return Tape(
        input_ids=np.array(case.prompt),
        max_new_tokens=case.canvases * case.canvas_length - int(rng.integers(case.canvas_length)),
        init=rng.integers(0, vocabulary, shape),
        uniform=rng.random((shape[0], steps, shape[1])),
        renoise=rng.integers(0, vocabulary, (shape[0], steps, shape[1])),
    )


def play(case: Case, directory: Path) -> Played:
    """Run HF on the case; `directory` then holds the checkpoint and `tape.npz`."""
    for drawn in case.again():
        checkpoint = drawn.write(directory / f"weights-{drawn.seed}")
        hf, tape = HuggingFace(checkpoint), draw_tape(drawn)
        record = hf.settle(tape, SAMPLE_MARGIN, drawn.seed)
        clear = hf.routes_clearly and decision_margin(record, drawn.generation) > MARGIN
        if clear and rounding(record, checkpoint, tape) < ROUNDING:
            path = directory / "tape.npz"
            np.savez(path, **vars(tape))
            return Played(drawn, checkpoint, path, hf, record)
    raise AssertionError("unreachable: `again` raises")


def rounding(record: Record, checkpoint: Path, tape: Tape) -> float:
    """The largest change of a logit (before temperature) that HF's computing in fp32 made."""
    hf = HuggingFace(checkpoint, torch.float64)
    exact = hf.generate(tape)
    assert exact.steps == record.steps, "clear decisions are the same in any precision"
    largest = 0.0
    for ours, theirs in zip(record.logits, exact.logits, strict=True):
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            n, low, high = hf.settings.max_denoising_steps, hf.settings.t_min, hf.settings.t_max
            warmth = low + (high - low) * (n - step) / n
            largest = max(largest, (a.double() - b.double()).abs().max().item() * warmth)
    return largest


def decision_margin(record: Record, generation: dict[str, object]) -> float:
    """The least change of a logit or an entropy, roughly, that would change a decision."""
    config = generation["sampler_config"]
    assert isinstance(config, dict)
    bound, confidence = config["entropy_bound"], generation["confidence_threshold"]
    assert isinstance(confidence, float)
    margins = [float("inf")]
    for canvas in zip(record.logits, record.entropy, record.accepted, strict=True):
        for logits, entropy, accepted in zip(*canvas, strict=True):
            top = logits.topk(2).values
            margins.append((top[:, 0] - top[:, 1]).min().item())
            margins.append(abs(entropy.mean().item() - confidence))
            margins.append(_acceptance_margin(entropy, accepted, bound))
    return min(margins)


def _acceptance_margin(entropy: Tensor, accepted: Tensor, bound: float) -> float:
    """Distance of a sum from the bound, or of the last accepted entropy from the next."""
    ordered = entropy.sort().values
    sums = (ordered.cumsum(0) - ordered)[1:]  # the first is zero, and always within
    margin = (sums - bound).abs().min().item()
    if accepted.all():
        return margin
    lead = entropy[~accepted].min() - entropy[accepted].max()
    return min(margin, torch.as_tensor(lead).item())
