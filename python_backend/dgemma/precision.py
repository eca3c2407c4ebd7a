"""How weights are laid out in each number format, and which weights a precision quantises.

Knows names, dtypes, shapes and bytes, as data; computes nothing and imports no torch.
For a parameter `[.., N, K]` (out, in): value = payload * block scale * row scale, each factor
present where its format has it. A byte of two values holds the even column in its low half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from dgemma.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

BLOCK_SCALE, ROW_SCALE = ".block_scale", ".row_scale"

# The spelling of safetensors -> bytes of an element, and torch's name for it.
DTYPES = {
    "F32": (4, "float32"),
    "BF16": (2, "bfloat16"),
    "F16": (2, "float16"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "U8": (1, "uint8"),
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a weight store; `dtype` is spelled as safetensors does."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][0]

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, DTYPES[self.dtype][1])
        return dtype


@dataclass(frozen=True)
class Format:
    """One number format: the payload's dtype, how it is packed, and the scales beside it."""

    name: str
    payload: str
    columns_per_byte: int = 1  # 2 where a byte holds two columns
    group_size: int | None = None  # columns that share a block scale
    block_scale: str | None = None  # dtype of `P.block_scale`, [.., N, K / group_size]
    row_scale: str | None = None  # dtype of `P.row_scale`, [.., N, 1]

    @property
    def is_quantized(self) -> bool:
        return self.block_scale is not None or self.row_scale is not None


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", "F32"),
        Format("bf16", "BF16"),
        # Largest value of a row / 448; activations are quantised per token, in the graph.
        Format("fp8", "F8_E4M3", row_scale="F32"),
        # Two's complement, -7..7, as ONNX packs INT4.
        Format("int4", "U8", columns_per_byte=2, group_size=64, block_scale="BF16"),
        # e2m1 codes. The row scale is the tensor scale, repeated per row: one per expert and per
        # half of a fused bank in checkpoints that others quantised.
        Format("nvfp4", "U8", 2, 16, block_scale="F8_E4M3", row_scale="F32"),
    )
}


def tensors(format: Format, name: str, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
    """The tensors that stand for parameter `name` of `shape` in a store, payload first.

    Raises ConfigurationError naming the parameter where its columns do not fill whole groups.
    """
    if not format.is_quantized:
        return {name: TensorSpec(format.payload, shape)}
    rows, columns = shape[:-1], shape[-1]
    group = format.group_size or format.columns_per_byte
    if len(shape) < 2 or columns % group:
        raise ConfigurationError(
            f"{name}: {format.name} needs a matrix whose columns are a multiple of {group}, "
            f"its shape is {list(shape)}; choose another precision or policy"
        )
    specs = {name: TensorSpec(format.payload, (*rows, columns // format.columns_per_byte))}
    if format.block_scale is not None:
        specs[name + BLOCK_SCALE] = TensorSpec(format.block_scale, (*rows, columns // group))
    if format.row_scale is not None:
        specs[name + ROW_SCALE] = TensorSpec(format.row_scale, (*rows, 1))
    return specs


@dataclass(frozen=True)
class Policy:
    """Which format each parameter has: the first rule whose glob matches its name, else `rest`."""

    rules: tuple[tuple[str, str], ...]  # (pattern of `Network`'s parameter names, format name)
    rest: str

    def format_of(self, name: str) -> Format:
        matches = (format for pattern, format in self.rules if fnmatchcase(name, pattern))
        return FORMATS[next(matches, self.rest)]

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
        """Every tensor of a store that holds parameters of `shapes`, in their order."""
        specs: dict[str, TensorSpec] = {}
        for name, shape in shapes.items():
            specs |= tensors(self.format_of(name), name, shape)
        return specs

    def to_dict(self) -> dict[str, Any]:
        return {"rules": [list(rule) for rule in self.rules], "rest": self.rest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError on foreign data."""
        rules = tuple((str(pattern), str(format)) for pattern, format in data["rules"])
        policy = cls(rules, data["rest"])
        for format in (policy.rest, *(format for _, format in rules)):
            if format not in FORMATS:
                raise ValueError(f"unknown format {format!r}")
        return policy


# What can be quantised at all: router, norms, scalars, embedding and self-conditioning never are.
EXPERTS = ("layers.*.experts.gate_up_proj", "layers.*.experts.down_proj")
MLP = "layers.*.mlp.*_proj.weight"
DENSE = (MLP, "layers.*.self_attn.*_proj.weight")


def _policies(format: str, *names: str) -> dict[str, Policy]:
    patterns = {
        "experts": EXPERTS,
        "feed_forward": (*EXPERTS, MLP),  # attention, a twentieth of the weights, errs the most
        "all": EXPERTS + DENSE,
    }
    return {n: Policy(tuple((p, format) for p in patterns[n]), "bf16") for n in names}


# Precision -> its policies by name, the default one first.
PRECISIONS: Mapping[str, Mapping[str, Policy]] = {
    "fp32": {"none": Policy((), "fp32")},
    "bf16": {"none": Policy((), "bf16")},
    "fp8": _policies("fp8", "all", "feed_forward", "experts"),
    "int4": _policies("int4", "feed_forward", "all", "experts"),
    "nvfp4": _policies("nvfp4", "experts", "feed_forward", "all"),
}


def policy_of(precision: str, name: str | None = None) -> Policy:
    """A policy by name, or the precision's default; ConfigurationError says what exists."""
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ConfigurationError(f"precision {precision!r} is not known; known: {known}")
    policies = PRECISIONS[precision]
    if name is None:
        return next(iter(policies.values()))
    if name not in policies:
        known = ", ".join(policies)
        raise ConfigurationError(f"precision {precision} has no policy {name!r}; known: {known}")
    return policies[name]
