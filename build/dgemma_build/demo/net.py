"""The demo network in the form that trains fast: whole batches, dense experts, no KV pool.

Knows DiffusionGemma's algebra and HF's parameter names, so that its state dict is a checkpoint.
It exists beside `dgemma.model` because training wants every expert computed densely and gradients
through the context; a test holds the two to each other.
Shapes: B sequences, M noised canvases per sequence, P context length, L canvas length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Geometry of the demo network; the names are those of HF's `config.json`."""

    vocab_size: int = 320
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_global_key_value_heads: int = 2
    head_dim: int = 32
    global_head_dim: int = 32
    num_experts: int = 4
    top_k_experts: int = 2
    moe_intermediate_size: int = 64
    sliding_window: int = 128
    canvas_length: int = 96
    rope_theta: float = 41.17  # one rotation frequency has a period of 10 tokens: a grid's line
    partial_rotary_factor: float = 0.5
    final_logit_softcapping: float = 30.0
    rms_norm_eps: float = 1e-6

    def is_full(self, layer: int) -> bool:
        return layer == self.num_hidden_layers - 1


def rms(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def rope_tables(shape: Shape, full: bool, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, `[len, head_dim]`, half-split; full layers rotate only the first frequencies."""
    dim = shape.global_head_dim if full else shape.head_dim
    frequencies = shape.rope_theta ** -(torch.arange(0, dim, 2).float() / dim)
    if full:
        frequencies[int(shape.partial_rotary_factor * dim) // 2 :] = 0
    angles = positions[:, None].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Norm(nn.Module):
    def __init__(self, dim: int, value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        return rms(x, self.weight)


class MLP(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))
        return out


class SelfConditioning(MLP):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__(dim, inner)
        self.pre_norm = Norm(dim)

    def forward(self, embedded: Tensor, soft: Tensor) -> Tensor:  # type: ignore[override]
        return rms(embedded + super().forward(self.pre_norm(soft)))


class Attention(nn.Module):
    def __init__(self, s: Shape, full: bool) -> None:
        super().__init__()
        self.full = full
        self.dim = s.global_head_dim if full else s.head_dim
        self.kv = s.num_global_key_value_heads if full else s.num_key_value_heads
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * self.dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, self.kv * self.dim, bias=False)
        if not full:
            self.v_proj = nn.Linear(s.hidden_size, self.kv * self.dim, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * self.dim, s.hidden_size, bias=False)
        self.q_norm = Norm(self.dim, self.dim**-0.25)
        self.k_norm = Norm(self.dim, self.dim**-0.25)

    def project(
        self, h: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # each [B, heads, len, dim]
        n, length, _ = h.shape
        q = self.q_proj(h).view(n, length, -1, self.dim).transpose(1, 2)
        raw = self.k_proj(h).view(n, length, -1, self.dim).transpose(1, 2)
        v = raw if self.full else self.v_proj(h).view(n, length, -1, self.dim).transpose(1, 2)
        return rotate(self.q_norm(q), *rope), rotate(self.k_norm(raw), *rope), rms(v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        n, heads, length, _ = q.shape
        q = q.reshape(n, self.kv, -1, self.dim)  # the heads that share K/V, side by side
        scores = (q @ k.transpose(-1, -2)).view(n, self.kv, heads // self.kv, length, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        weights = scores.softmax(-1).view(n, self.kv, q.shape[2], -1)
        out = (weights @ v).view(n, heads, length, self.dim)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(n, length, -1))
        return mixed


class Router(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.k = s.top_k_experts
        self.root = s.hidden_size**-0.5
        self.proj = nn.Linear(s.hidden_size, s.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(s.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(s.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dense expert weights `[.., E]`, zero off the top k, and the load-balance loss."""
        p = self.proj(rms(x) * (self.scale * self.root)).float().softmax(-1)
        chosen = p >= p.topk(self.k, -1).values[..., -1:]
        kept = p * chosen
        weights = kept / kept.sum(-1, keepdim=True) * self.per_expert_scale
        flat = p.flatten(0, -2)
        share = chosen.flatten(0, -2).float().mean(0) / self.k
        return weights.to(x.dtype), (share * flat.mean(0)).sum() * p.shape[-1]


class Experts(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        e, d, i = s.num_experts, s.hidden_size, s.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(e, 2 * i, d) * d**-0.5)
        self.down_proj = nn.Parameter(torch.randn(e, d, i) * i**-0.5)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        e, _, i = self.down_proj.shape
        gate_up = F.linear(x, self.gate_up_proj.flatten(0, 1)).unflatten(-1, (e, 2 * i))
        gate, up = gate_up.chunk(2, -1)
        inner = gelu(gate) * up * weights[..., None]  # [.., E, I]
        return F.linear(inner.flatten(-2), self.down_proj.transpose(0, 1).flatten(1))


class Layer(nn.Module):
    def __init__(self, s: Shape, full: bool) -> None:
        super().__init__()
        d = s.hidden_size
        self.self_attn = Attention(s, full)
        self.mlp = MLP(d, s.intermediate_size)
        self.router = Router(s)
        self.experts = Experts(s)
        self.input_layernorm = Norm(d)
        self.post_attention_layernorm = Norm(d)
        self.pre_feedforward_layernorm = Norm(d)
        self.post_feedforward_layernorm = Norm(d)
        self.pre_feedforward_layernorm_2 = Norm(d)
        self.post_feedforward_layernorm_1 = Norm(d)
        self.post_feedforward_layernorm_2 = Norm(d)
        self.layer_scalar = nn.Parameter(torch.ones(1))
        self.encoder_scalar = nn.Parameter(torch.ones(1))

    def feed_forward(self, x: Tensor, scalar: Tensor) -> tuple[Tensor, Tensor]:
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        weights, balance = self.router(x)
        routed = self.experts(self.pre_feedforward_layernorm_2(x), weights)
        mixed = dense + self.post_feedforward_layernorm_2(routed)
        return (x + self.post_feedforward_layernorm(mixed)) * scalar, balance

    def encode(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v = self.self_attn.project(self.input_layernorm(x), rope)
        x = x + self.post_attention_layernorm(self.self_attn.attend(q, k, v, mask))
        x, balance = self.feed_forward(x, self.encoder_scalar)
        return x, k, v, balance

    def denoise(
        self, x: Tensor, ck: Tensor, cv: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, k, v = self.self_attn.project(self.input_layernorm(x), rope)
        repeat = x.shape[0] // ck.shape[0]
        ck = ck[:, None].expand(-1, repeat, -1, -1, -1).flatten(0, 1)
        cv = cv[:, None].expand(-1, repeat, -1, -1, -1).flatten(0, 1)
        k, v = torch.cat([ck, k], 2), torch.cat([cv, v], 2)
        x = x + self.post_attention_layernorm(self.self_attn.attend(q, k, v, mask))
        return self.feed_forward(x, self.layer_scalar)


class DemoNet(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.hidden_size
        self.embed_tokens = nn.Embedding(shape.vocab_size, d)
        nn.init.normal_(self.embed_tokens.weight, std=d**-0.5)
        self.blocks = [Layer(shape, shape.is_full(i)) for i in range(shape.num_hidden_layers)]
        self.layers = nn.ModuleList(self.blocks)  # the same, under HF's name
        self.norm = Norm(d)
        self.self_conditioning = SelfConditioning(d, shape.intermediate_size)

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embed_tokens.weight) * math.sqrt(self.shape.hidden_size)

    def encode(self, context: Tensor, valid: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """K/V of a context `[B, P]` of which `valid[B]` tokens are real, and the balance loss."""
        length = context.shape[1]
        positions = torch.arange(length)
        gap = positions[:, None] - positions
        x, kv, balance = self.embed(context), [], torch.zeros(())
        for layer in self.blocks:
            full = layer.self_attn.full
            mask = (gap >= 0) & (full | (gap < self.shape.sliding_window))
            x, k, v, b = layer.encode(x, rope_tables(self.shape, full, positions), mask)
            kv.append((k, v))
            balance = balance + b
        return kv, balance

    def denoise(
        self, canvas: Tensor, soft: Tensor, kv: list[tuple[Tensor, Tensor]], start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits `[B*M, L, V]` of canvases that start at `start [B]`, after their context."""
        n, length = canvas.shape
        context = kv[0][0].shape[2]
        x = self.self_conditioning(self.embed(canvas), soft)
        balance = torch.zeros(())
        start = start.repeat_interleave(n // start.shape[0])
        past = torch.arange(context)
        for layer, (ck, cv) in zip(self.blocks, kv, strict=True):
            full = layer.self_attn.full
            # Keys are rotated by absolute position, so canvases may start anywhere.
            rope = rope_tables(self.shape, full, torch.arange(length + 4 * context))
            rows = start[:, None] + torch.arange(length)
            cos, sin = (table[rows][:, None] for table in rope)
            seen = past < start[:, None]
            if not full:
                seen = seen & (past >= start[:, None] - (self.shape.sliding_window - 1))
            mask = torch.cat([seen, torch.ones(n, length, dtype=torch.bool)], 1)
            x, b = layer.denoise(x, ck, cv, (cos, sin), mask[:, None, None, None])
            balance = balance + b
        cap = self.shape.final_logit_softcapping
        logits = F.linear(self.norm(x), self.embed_tokens.weight).float()
        return torch.tanh(logits / cap) * cap, balance

    def soften(self, logits: Tensor) -> Tensor:
        """The soft embedding that carries one step's belief to the next, `[.., L, D]`."""
        return logits.softmax(-1) @ self.embed_tokens.weight * math.sqrt(self.shape.hidden_size)
