from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from dgemma.dequantize import E2M1, codes, dequantize, unpack
from dgemma.precision import FORMATS

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(1, 256)


def test_the_even_column_is_the_low_half_of_a_byte() -> None:
    assert unpack(torch.tensor([[0x21, 0x43]], dtype=torch.uint8)).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("format", "dtype"), [("int4", ml_dtypes.int4), ("nvfp4", ml_dtypes.float4_e2m1fn)]
)
def test_every_byte_of_two_codes_means_what_ml_dtypes_says(format: str, dtype: object) -> None:
    nibbles = np.arange(16, dtype=np.uint8)
    if format == "int4":
        meaning = np.where(nibbles < 8, nibbles, nibbles.astype(np.int8) - 16).astype(np.float32)
        assert set(meaning) == {float(v) for v in np.arange(-8, 8).astype(dtype)}  # type: ignore[call-overload]
    else:
        meaning = nibbles.view(dtype).astype(np.float32)  # type: ignore[call-overload]
    wanted = [[meaning[half] for byte in range(256) for half in (byte % 16, byte // 16)]]
    assert codes(FORMATS[format], EVERY_BYTE).tolist() == wanted


def test_every_byte_of_fp8_means_what_ml_dtypes_says() -> None:
    got = codes(FORMATS["fp8"], EVERY_BYTE.view(torch.float8_e4m3fn)).numpy()
    wanted = EVERY_BYTE.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(got, wanted)  # NaN at the same two places


def test_a_scale_applies_to_its_own_group_and_row() -> None:
    payload = torch.full((2, 3, 32), 0x22, dtype=torch.uint8)  # code 2 is 1.0
    block = torch.arange(1, 25, dtype=torch.float32).view(2, 3, 4).to(torch.float8_e4m3fn)
    row = torch.arange(6, dtype=torch.float32).view(2, 3, 1) + 1
    got = dequantize(FORMATS["nvfp4"], payload, block, row)
    assert got.shape == (2, 3, 64)
    for e in range(2):
        for n in range(3):
            for k in range(64):
                wanted = float(block[e, n, k // 16]) * float(row[e, n, 0])
                assert float(got[e, n, k]) == wanted * E2M1[2]


def test_int4_has_block_scales_alone() -> None:
    payload = torch.tensor([[0xF7] * 64], dtype=torch.uint8)  # 7 and -1
    scale = torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16)
    got = dequantize(FORMATS["int4"], payload, scale, None)
    assert got.view(2, 32, 2)[:, 0].tolist() == [[3.5, -0.5], [-14.0, 2.0]]
    assert got.dtype == torch.float32


def test_fp8_has_row_scales_alone() -> None:
    payload = torch.tensor([[448.0, -2.0], [1.0, 0.0]]).to(torch.float8_e4m3fn)
    got = dequantize(FORMATS["fp8"], payload, None, torch.tensor([[0.5], [3.0]]))
    assert got.tolist() == [[224.0, -1.0], [3.0, 0.0]]


def test_what_is_not_quantised_is_only_widened() -> None:
    weights = torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16)
    assert torch.equal(dequantize(FORMATS["bf16"], weights, None, None), weights.float())
