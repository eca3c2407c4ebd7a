from __future__ import annotations

import pytest
import torch

from dgemma.engine.kernels import attention_reference
from dgemma.engine.kernels.heads import normed_heads, rotary_table
from tests.dgemma.engine.kernels.passes import DENOISE, ENCODE, distance, rows_of

ROWS = [(262_100, 11, 0, ENCODE, -1), (3, 11, 1, DENOISE, -1)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "groups", "dim", "has_v"),
    [(3, 1, 24, True), (4, 2, 32, False), (16, 8, 256, True), (16, 2, 512, False)],
)
def test_heads_are_the_references(
    heads: int, groups: int, dim: int, has_v: bool, dtype: torch.dtype
) -> None:
    noise = torch.Generator().manual_seed(dim)
    rows = rows_of(11, ROWS[: 1 if dim > 32 else 2])
    width = (heads + (2 if has_v else 1) * groups) * dim
    lines = torch.randn(rows.count * 11, width, generator=noise).to(dtype)
    weights = [(1 + 0.3 * torch.randn(dim, generator=noise)).to(dtype) for _ in "qk"]
    frequencies = 10_000.0 ** -(torch.arange(dim // 2) / (dim // 2))
    table = rotary_table(rows, frequencies)
    plain = attention_reference.rotary_table(rows, frequencies)
    torch.testing.assert_close(table, plain, rtol=0, atol=1e-6)
    sizes = {"heads": heads, "groups": groups, "eps": 1e-6}
    got = normed_heads(lines, *weights, table, **sizes)
    wanted = attention_reference.normed_heads(
        lines.float(), *(w.float() for w in weights), plain, **sizes
    )
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, dtype)
        assert distance(mine, theirs) < (1e-5 if dtype == torch.float32 else 5e-3)
