from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import norms, norms_reference
from dgemma.engine.kernels.operands import FP8, FP8_MOST, Lines

EPS = 1e-6
REAL = 2816
# Sums in another order differ in fp32, which flips few bits of what is rounded; where a flipped bit
# of the residual stream is one of few, it moves its whole row.
FLIPPED, MANY = 2e-3, 2000


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are full of NaN before they are written."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **options: poison(empty(*a, **options)))
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **options: poison(empty_like(*a, **options))
    )


def poison(made: Tensor) -> Tensor:
    if made.dtype == FP8:
        made.view(torch.uint8).fill_(0x7F)
    elif made.is_floating_point():
        made.fill_(torch.nan)
    return made


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [(torch.randn(shape) * 2).to(dtype) for shape in shapes]


def flatten(result: Any) -> list[Tensor | Lines]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if part is not None]


def compare(name: str, *arguments: Any, **named: Any) -> list[float]:
    """Runs kernel and reference and holds one against the other; the share of codes that differ."""
    found = flatten(getattr(norms, name)(*arguments, **named))
    wanted = flatten(getattr(norms_reference, name)(*arguments, **named))
    assert len(found) == len(wanted)
    return [differing(one, other) for one, other in zip(found, wanted, strict=True)]


def differing(found: Tensor | Lines, wanted: Tensor | Lines) -> float:
    if isinstance(found, Tensor):
        found = Lines(found)
    if isinstance(wanted, Tensor):
        wanted = Lines(wanted)
    assert found.values.dtype == wanted.values.dtype
    assert found.values.shape == wanted.values.shape
    assert (found.scale is None) == (wanted.scale is None)
    out, reference = found.values.float(), wanted.values.float()
    if found.scale is not None and wanted.scale is not None:
        torch.testing.assert_close(found.scale, wanted.scale, rtol=2**-7, atol=0)
        codes = [lines.values.view(torch.uint8).int() for lines in (found, wanted)]
        assert (codes[0] - codes[1]).abs().max() <= 1
    else:
        # One bit of BF16 in what a norm reads may become one more in what it gives.
        bit = 2**-6 if found.values.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(out, reference, rtol=bit, atol=1e-4)
    share = float((out != reference).float().mean())
    if found.values.dtype != torch.float32 and out.numel() > MANY:
        assert share < FLIPPED
    return share


@pytest.mark.parametrize("width", [1, 7, 100, 704, REAL, 4096, 8192])
def test_rows_are_rounded_to_the_same_codes(width: int) -> None:
    (x,) = tensors(torch.bfloat16, (3, width))
    x[1] *= 1e-4
    assert compare("quantize_rows", x) == [0.0]


def test_a_line_of_zeros_stays_one() -> None:
    x = torch.zeros(2, REAL, dtype=torch.bfloat16)
    x[1, 5] = -3.0
    lines = norms.quantize_rows(x)
    assert lines.scale is not None
    assert not lines.values[0].float().any()
    assert lines.scale[0] == torch.tensor(1e-12) / FP8_MOST
    assert lines.values[1, 5].float() == -FP8_MOST


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (5, 7), (2, 513), (6, REAL)])
@pytest.mark.parametrize("fp8", [False, True])
def test_normed(tokens: int, width: int, fp8: bool, dtype: torch.dtype) -> None:
    x, weight = tensors(dtype, (tokens, width), (width,))
    compare("normed", x, weight, EPS, fp8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "width"), [(1, 3), (4, 97), (6, REAL)])
@pytest.mark.parametrize(("dense", "routed"), [(False, False), (False, True), (True, True)])
def test_after_attention(
    tokens: int, width: int, dense: bool, routed: bool, dtype: torch.dtype
) -> None:
    given = tensors(dtype, *[(tokens, width)] * 2, *[(width,)] * 3)
    scale = torch.randn(width) * width**-0.5
    compare("after_attention", *given, scale, EPS, fp8_dense=dense, fp8_routed=routed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "length", "top", "width"),
    [(1, 1, 1, 1), (3, 2, 2, 7), (2, 3, 3, 97), (1, 5, 5, 12), (2, 2, 8, REAL)],
)
@pytest.mark.parametrize("fp8", [False, True])
def test_after_feed_forward(
    rows: int, length: int, top: int, width: int, fp8: bool, dtype: torch.dtype
) -> None:
    tokens = rows * length
    shapes = (tokens, width), (tokens, width), (tokens, top, width), *[(width,)] * 4
    *given, next_weight = tensors(dtype, *shapes)
    scalar = torch.rand(rows) + 0.5
    compare("after_feed_forward", *given, scalar, next_weight, EPS, fp8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "length", "width"), [(1, 1, 1), (3, 2, 7), (2, 3, REAL)])
def test_entered(rows: int, length: int, width: int, dtype: torch.dtype) -> None:
    embedding, conditioned = tensors(dtype, (50, width), (rows * length, width))
    ids = torch.randint(0, 50, (rows * length,))
    denoise = torch.arange(rows) % 2 == 0
    compare("entered", ids, embedding, width**0.5, conditioned, denoise, EPS)


def test_the_scale_of_embeddings_is_rounded_to_their_type() -> None:
    embedding = torch.ones(1, REAL, dtype=torch.bfloat16)
    nothing, encode = torch.zeros(1, REAL), torch.zeros(1, dtype=torch.bool)
    ids = torch.zeros(1, dtype=torch.int64)
    out = norms.entered(ids, embedding, REAL**0.5, nothing, encode, EPS)
    assert (out == 53).all()  # and not 53.07


def test_a_token_is_computed_the_same_among_others() -> None:
    x, attended, *weights = tensors(torch.bfloat16, *[(4, REAL)] * 2, *[(REAL,)] * 4)
    options = {"fp8_dense": True, "fp8_routed": True}
    together = norms.after_attention(x, attended, *weights, EPS, **options)
    alone = norms.after_attention(x[2:3], attended[2:3], *weights, EPS, **options)
    for many, one in zip(flatten(together), flatten(alone), strict=True):
        many, one = (lines if isinstance(lines, Lines) else Lines(lines) for lines in (many, one))
        assert torch.equal(many.values[2:3].view(torch.uint8), one.values.view(torch.uint8))


@pytest.mark.parametrize("wrong", ["weight", "scalar", "order"])
def test_a_mistake_would_be_seen(wrong: str) -> None:
    x, dense, *weights = tensors(torch.bfloat16, *[(4, 96)] * 2, *[(96,)] * 4)
    (routed,) = tensors(torch.bfloat16, (4, 2, 96))
    scalar = torch.tensor([0.5, 2.0])
    wanted, _ = norms_reference.after_feed_forward(
        x, dense, routed, *weights[:3], scalar, None, EPS, False
    )
    if wrong == "weight":
        weights[2] = weights[2] * 1.1
    if wrong == "scalar":
        scalar = scalar.flip(0)
    if wrong == "order":
        routed = routed.roll(1, 0)
    found, _ = norms.after_feed_forward(
        x, dense, routed, *weights[:3], scalar, weights[3], EPS, False
    )
    with pytest.raises(AssertionError):
        differing(found, wanted)


def test_tensors_with_gaps_are_refused() -> None:
    x = torch.zeros(4, 6, dtype=torch.bfloat16)[:, :3]
    with pytest.raises(ValueError, match=r"x: strides \(6, 1\) of \[4, 3\]"):
        norms.quantize_rows(x)
