"""Real weights to payload and scales, one format at a time.

Knows how each format rounds and chooses its scales; knows nothing of files or of the network.
Shapes: N rows (out), K columns (in), G groups of columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma.precision import BLOCK_SCALE, FORMATS, ROW_SCALE, Format

E4M3_MAX, E4M3_MIN = 448.0, 2.0**-9  # largest value and smallest subnormal
E2M1_MAX = 6.0
INT4_MAX = 7.0
TINY = 2.0**-100
# Clipping a group's largest values makes the others finer; each group takes what errs least.
# On normally distributed weights this saves a ninth of the squared error; more ratios save little.
CLIP_RATIOS = (1.0, 0.9, 0.8)

Rows = dict[str, Tensor]  # suffix of a tensor's name in the store -> consecutive rows of it


def encode(format: Format, weights: Tensor, tensor_scale: Tensor) -> Rows:
    """Rows of `weights [N, K]`, finite fp32, as the tensors of `format`.

    `tensor_scale` is `tensor_scale_of` the whole matrix, of which these may be a part.
    """
    if format.name == "fp8":
        return _fp8(weights)
    if format.name == "int4":
        return _int4(weights)
    assert format.name == "nvfp4", format.name
    return _nvfp4(weights, tensor_scale)


def tensor_scale_of(largest: Tensor) -> Tensor:
    """NVFP4's scale of a matrix from its largest magnitude: the largest block's scale is 448."""
    scale = largest.float() / (E2M1_MAX * E4M3_MAX)
    # Its product with the smallest block scale has to be a number that one can divide by.
    return torch.where(scale > TINY, scale, 1.0)


def _fp8(weights: Tensor) -> Rows:
    scale = _never_zero(weights.abs().amax(-1, keepdim=True) / E4M3_MAX)  # [N, 1]
    # Clamped because a scale that is itself subnormal may have been rounded down a lot.
    payload = (weights / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return {"": payload, ROW_SCALE: scale}


def _int4(weights: Tensor) -> Rows:
    groups = _groups(FORMATS["int4"], weights)
    largest = groups.abs().amax(-1, keepdim=True)  # [N, G, 1]
    error, scale, rounded = _rounded_int4(groups, largest * (CLIP_RATIOS[0] / INT4_MAX))
    for ratio in CLIP_RATIOS[1:]:
        other = _rounded_int4(groups, largest * (ratio / INT4_MAX))
        better = other[0] < error
        error = torch.where(better, other[0], error)
        scale = torch.where(better, other[1], scale)
        rounded = torch.where(better, other[2], rounded)
    nibbles = rounded.to(torch.int8).view(torch.uint8).bitwise_and_(15)
    return {"": pack(nibbles.flatten(-2)), BLOCK_SCALE: scale[..., 0].bfloat16()}


def _rounded_int4(groups: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error per group, the scale as it will be stored, and the codes chosen for it."""
    scale = _never_zero(scale.bfloat16().float())  # [N, G, 1]
    rounded = (groups / scale).round_().clamp_(-INT4_MAX, INT4_MAX)  # [N, G, group]
    error = (rounded * scale).sub_(groups).square_().sum(-1, keepdim=True)
    return error, scale, rounded


def _nvfp4(weights: Tensor, tensor_scale: Tensor) -> Rows:
    groups = _groups(FORMATS["nvfp4"], weights)
    largest = groups.abs().amax(-1)  # [N, G]
    # A block too small for the smallest scale still gets it: its larger values survive.
    block = (largest / (E2M1_MAX * tensor_scale)).clamp_(E4M3_MIN, E4M3_MAX)
    block = block.to(torch.float8_e4m3fn)
    nibbles = e2m1(groups / (block.float() * tensor_scale)[..., None])
    row_scale = tensor_scale.expand(weights.shape[0], 1)
    return {"": pack(nibbles.flatten(-2)), BLOCK_SCALE: block, ROW_SCALE: row_scale}


def e2m1(values: Tensor) -> Tensor:
    """The nearest e2m1 code of each value, ties to the even code, saturating at 6."""
    size = values.abs().clamp_(max=E2M1_MAX)
    # Codes are spaced by 0.5 up to 2, by 1 up to 4 and by 2 from there: where a finer spacing no
    # longer holds, its line lies above the coarser one's.
    code = (2 * size).round_()
    code = torch.minimum(code, size.round().add_(2))
    code = torch.minimum(code, (size / 2).round_().add_(4))
    return code.to(torch.uint8).bitwise_or_((values < 0).to(torch.uint8) << 3)


def pack(nibbles: Tensor) -> Tensor:
    """Nibbles uint8 `[.., K]` -> `[.., K / 2]`, the even column in the low half."""
    pairs = nibbles.unflatten(-1, (-1, 2))
    packed: Tensor = pairs[..., 0] | pairs[..., 1] << 4
    return packed


def _groups(format: Format, weights: Tensor) -> Tensor:
    assert format.group_size is not None
    groups: Tensor = weights.unflatten(-1, (-1, format.group_size))  # [N, G, group]
    return groups


def _never_zero(scale: Tensor) -> Tensor:
    """Where all is zero any scale will do, and one can be divided by."""
    return torch.where(scale > 0, scale, 1.0)
