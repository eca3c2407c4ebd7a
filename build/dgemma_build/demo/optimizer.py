"""Muon for the matrices, AdamW for the rest, and a warm-up / stable / decay schedule.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum
by the nearest semi-orthogonal matrix; it needs about half the steps of AdamW here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards UV^T of each matrix in `[n, rows, cols]`."""
    tall = g.shape[-2] > g.shape[-1]
    x: Tensor = g.transpose(-1, -2) if tall else g
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(-1, -2) if tall else x


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are stacked, so a step is a few batched products."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape[-2], p.shape[-1]].append((p, p.grad))
            for (rows, cols), params in shapes.items():
                updates = []
                for p, gradient in params:
                    buffer: Tensor = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    nesterov = gradient.lerp(buffer, group["momentum"])
                    updates.append(nesterov.reshape(-1, rows, cols))
                sizes = [u.shape[0] for u in updates]
                stacked = orthogonalise(torch.cat(updates)) * max(1.0, rows / cols) ** 0.5
                for (p, _), update in zip(params, stacked.split(sizes), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"])


def split_parameters(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, everything else for AdamW)."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in net.named_parameters():
        plain = p.ndim < 2 or "embed_tokens" in name or "router" in name
        (others if plain else matrices).append(p)
    return matrices, others


def schedule(step: int, total: int, warmup: int = 200, decay: float = 0.3) -> float:
    """Factor on the learning rate: linear warm-up, flat, then linear to zero."""
    return min(1.0, (step + 1) / warmup, max(0.0, (total - step) / max(1, int(decay * total))))
