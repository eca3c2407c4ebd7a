"""The parts of a layer that see one token at a time: norms, gated MLPs, rotary embedding.

Knows HF's parameter names; knows nothing of rows, masks or caches.
Shapes: D hidden size, I inner size, H heads, d head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu(x: Tensor) -> Tensor:
    """Tanh-approximated GELU, the only activation of the model."""
    return F.gelu(x, approximate="tanh")


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis in fp32 (plain weight, not 1 + weight)."""

    def __init__(self, dim: int, eps: float, with_scale: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if with_scale else None

    @property
    def scale(self) -> Tensor:
        """`[D]` fp32; raises TypeError where there is none."""
        if self.weight is None:
            raise TypeError("this norm has no scale")
        return self.weight.float()

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return unscaled_norm(x, self.eps)
        return F.rms_norm(x.float(), (x.shape[-1],), self.scale, self.eps).to(x.dtype)


def unscaled_norm(x: Tensor, eps: float) -> Tensor:
    """`x / rms(x)` over the last axis in fp32."""
    # Left out, the scale becomes a tensor as large as x in the graph.
    scale = torch.ones(x.shape[-1])
    return F.rms_norm(x.float(), (x.shape[-1],), scale, eps).to(x.dtype)


class GatedMLP(nn.Module):
    """`down(gelu(gate(x)) * up(x))`, the dense feed-forward of a layer."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = gelu(self.gate_proj(x)) * self.up_proj(x)  # [.., I]
        return self.down_proj(inner)  # type: ignore[no-any-return]


class SelfConditioning(GatedMLP):
    """Mixes the previous step's soft embedding into the canvas's token embeddings."""

    def __init__(self, dim: int, inner: int, eps: float) -> None:
        super().__init__(dim, inner)
        self.pre_norm = RMSNorm(dim, eps)
        self.post_norm = RMSNorm(dim, eps, with_scale=False)

    def mix(self, embedded: Tensor, soft: Tensor) -> Tensor:
        """Both `[R, L, D]`; `soft` is zero at a canvas's first step, and still counts."""
        return self.post_norm(embedded + self(self.pre_norm(soft)))  # type: ignore[no-any-return]


def rotary_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin `[R, L, d / 2]` for absolute positions `[R, L]`, frequencies `[d / 2]`."""
    angles = positions[:, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of `[R, H, L, d]` by tables `[R, L, d / 2]`."""
    return torch.onnx.ops.rotary_embedding(x, cos.to(x.dtype), sin.to(x.dtype))
