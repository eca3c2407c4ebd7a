"""How well a network in training answers, by a sampler written down as plainly as possible.

Knows tasks and the entropy-bound sampler; knows nothing of engines, whose figures `evaluate` gives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgemma_build.demo.net import DemoNet
from dgemma_build.demo.tasks import Batch, SudokuSource, count_batch

ENTROPY_BOUND, CONFIDENCE, STEPS = 0.1, 0.005, 48
SAMPLES = 50


@torch.no_grad()
def rollout(net: DemoNet, batch: Batch) -> tuple[Tensor, Tensor]:
    """Denoise a canvas per context: most likely tokens `[B, L]` and steps taken `[B]`."""
    n, length, vocab = len(batch.context), net.shape.canvas_length, net.shape.vocab_size
    kv, _ = net.encode(batch.context, batch.start)
    canvas = torch.randint(vocab, (n, length))
    soft = torch.zeros(n, length, net.shape.hidden_size)
    last, taken = torch.full_like(canvas, -1), torch.zeros(n, dtype=torch.long)
    done = torch.zeros(n, dtype=torch.bool)
    for remaining in range(STEPS, 0, -1):
        logits, _ = net.denoise(canvas, soft, kv, batch.start)
        z = logits / (0.4 + 0.4 * remaining / STEPS)
        p = z.softmax(-1)
        entropy = -(p * z.log_softmax(-1)).sum(-1)
        order = entropy.sort(-1)
        within = order.values.cumsum(-1) - order.values <= ENTROPY_BOUND
        accepted = torch.zeros_like(within).scatter(1, order.indices, within)
        drawn = torch.multinomial(p.flatten(0, 1), 1).view(n, length)
        best = torch.where(done[:, None], last, z.argmax(-1))
        taken += ~done
        done = done | ((best == last).all(-1) & (entropy.mean(-1) < CONFIDENCE))
        if done.all():
            break
        last = best
        canvas = torch.where(accepted, drawn, torch.randint(vocab, (n, length)))
        soft = net.soften(z)
    return last, taken


def report(net: DemoNet, source: SudokuSource, seed: int = 0) -> str:
    """Share of right answers and mean steps per task, as one line."""
    rng, length = np.random.default_rng(seed), net.shape.canvas_length
    tasks = {
        f"{blanks} blanks": source.batch(rng, np.full(SAMPLES, blanks), length)
        for blanks in (20, 30, 45)
    } | {f"count[{block}]": count_batch(rng, SAMPLES, block, length) for block in (0, 1, 2)}
    parts = []
    for name, batch in tasks.items():
        answer, steps = rollout(net, batch)
        right = (answer == batch.target).all(-1).float().mean().item()
        parts.append(f"{name} {right:.0%} in {steps.float().mean().item():.1f}")
    return ", ".join(parts)
