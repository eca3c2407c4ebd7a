from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from dgemma.dequantize import E2M1, codes, dequantize, unpack
from dgemma.precision import BLOCK_SCALE, FORMATS, ROW_SCALE, TensorSpec, tensors
from dgemma_build.quantize.encode import Rows, e2m1, encode, pack, tensor_scale_of

QUANTIZED = ("fp8", "int4", "nvfp4")


def weights(seed: int = 0, rows: int = 24, columns: int = 192, size: float = 0.02) -> Tensor:
    """Of a magnitude that differs between rows and blocks, as trained weights are."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    spread = torch.rand(rows, columns // 16, generator=generator).mul(3).exp()
    return (
        (values.unflatten(1, (-1, 16)) * spread[..., None]).flatten(1).mul(size).bfloat16().float()
    )


def encoded(format: str, values: Tensor) -> Rows:
    return encode(FORMATS[format], values, tensor_scale_of(values.abs().amax()))


def decoded(format: str, rows: Rows) -> Tensor:
    return dequantize(FORMATS[format], rows[""], rows.get(BLOCK_SCALE), rows.get(ROW_SCALE))


@pytest.mark.parametrize("format", QUANTIZED)
def test_the_tensors_are_those_of_the_format(format: str) -> None:
    got = {"w" + suffix: tensor for suffix, tensor in encoded(format, weights()).items()}
    wanted = tensors(FORMATS[format], "w", (24, 192))
    assert got.keys() == wanted.keys()
    for name, tensor in got.items():
        spec = wanted[name]
        assert TensorSpec(spec.dtype, tuple(tensor.shape)) == spec
        assert tensor.dtype == spec.torch_dtype


@pytest.mark.parametrize("format", QUANTIZED)
def test_no_other_code_is_nearer_under_the_scales_that_were_chosen(format: str) -> None:
    """All codes of a format are tried for every weight."""
    values = weights()
    rows = encoded(format, values)
    payloads = torch.arange(256, dtype=torch.uint8).view(rows[""].dtype)[None]
    table = codes(FORMATS[format], payloads).unique()
    table = table[table.isfinite() & (table > -8 if format == "int4" else table < 1000)]
    unit = torch.ones_like(values)
    for suffix, scale in rows.items():
        if suffix:
            unit *= scale.float().repeat_interleave(192 // scale.shape[1], 1)
    nearest = (table * unit[..., None] - values[..., None]).abs().amin(-1)
    error = (decoded(format, rows) - values).abs()
    assert bool((error <= nearest + 1e-6 * values.abs()).all())


@pytest.mark.parametrize(("format", "limit"), [("fp8", 0.028), ("int4", 0.12), ("nvfp4", 0.105)])
def test_the_error_is_that_of_the_formats_bits(format: str, limit: float) -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(128, 768, generator=generator)
    error = (decoded(format, encoded(format, values)) - values).norm() / values.norm()
    assert 0.5 * limit < error < limit


@pytest.mark.parametrize("format", QUANTIZED)
def test_rows_may_be_encoded_in_parts(format: str) -> None:
    values = weights()
    scale = tensor_scale_of(values.abs().amax())
    whole = encode(FORMATS[format], values, scale)
    parts = [encode(FORMATS[format], part, scale) for part in values.split(7)]
    for suffix, tensor in whole.items():
        joined = torch.cat([part[suffix].contiguous().view(torch.uint8) for part in parts])
        assert torch.equal(joined, tensor.contiguous().view(torch.uint8)), suffix


@pytest.mark.parametrize("format", QUANTIZED)
@pytest.mark.parametrize("size", [1e-38, 1e-42, 1e-20, 1e20, 3e38])
def test_weights_of_any_size_stay_finite(format: str, size: float) -> None:
    values = torch.linspace(-1, 1, 4 * 64).view(4, 64) * size
    got = decoded(format, encoded(format, values))
    assert bool(got.isfinite().all())
    if 1e-25 < size < 1e38:
        torch.testing.assert_close(got / size, values / size, rtol=0, atol=0.2)


@pytest.mark.parametrize("format", QUANTIZED)
def test_zeros_stay_zeros(format: str) -> None:
    values = weights()
    values[3] = 0
    values[5, 64:128] = 0
    got = decoded(format, encoded(format, values))
    assert not got[3].any() and not got[5, 64:128].any()
    assert got[4].any()
    nothing = encoded(format, torch.zeros(2, 64))
    assert not decoded(format, nothing).any()
    assert all(bool(scale.float().gt(0).all()) for suffix, scale in nothing.items() if suffix)


def test_fp8_gives_each_rows_largest_weight_the_largest_code() -> None:
    values = weights()
    rows = encoded("fp8", values)
    assert torch.equal(rows[ROW_SCALE], values.abs().amax(1, keepdim=True) / 448)
    assert torch.equal(rows[""].float().abs().amax(1), torch.full((24,), 448.0))


def test_nvfp4_follows_nvidias_recipe() -> None:
    values = weights()
    rows = encoded("nvfp4", values)
    scale = np.float32(values.abs().max()) / np.float32(6 * 448)
    assert torch.equal(rows[ROW_SCALE], torch.full((24, 1), float(scale)))
    largest = values.view(24, 12, 16).abs().amax(-1).numpy()
    wanted = (largest / (np.float32(6) * scale)).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(rows[BLOCK_SCALE].float().numpy(), wanted.astype(np.float32))
    assert rows[BLOCK_SCALE].float().max() == 448


def test_a_block_too_small_for_its_scale_keeps_its_larger_weights() -> None:
    values = torch.zeros(1, 32)
    values[0, 0] = 2688.0
    values[0, 16:] = torch.linspace(0, 0.008, 16)  # its scale would be 0.0013, smallest 2^-9
    rows = encoded("nvfp4", values)
    assert float(rows[BLOCK_SCALE].float()[0, 1]) == 2**-9
    torch.testing.assert_close(decoded("nvfp4", rows), values, rtol=0, atol=2**-10)


def test_int4_codes_are_symmetric() -> None:
    nibbles = unpack(encoded("int4", weights())[""])
    assert set(nibbles.unique().tolist()) == {*range(8), *range(9, 16)}  # never -8


def test_int4_clips_where_that_errs_less_and_never_more() -> None:
    values = weights(rows=64)
    rows = encoded("int4", values)
    groups = values.unflatten(1, (-1, 64))
    plain = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
    unclipped = (groups / plain).round().clamp(-7, 7) * plain
    before = (unclipped - groups).square().sum(-1)
    after = (decoded("int4", rows).unflatten(1, (-1, 64)) - groups).square().sum(-1)
    assert bool((after <= before * (1 + 1e-5)).all())
    assert after.sum() < 0.95 * before.sum()


def test_e2m1_rounds_as_ml_dtypes_does() -> None:
    steps = torch.arange(-8 * 512, 8 * 512 + 1) / 512  # every tie is among them
    beside = torch.tensor(
        [v * s * f for v, s, f in itertools.product(E2M1, (1, -1), (0.999, 1.001))]
    )
    values = torch.cat([steps, beside, torch.tensor([100.0, -1e30])])
    inside = values.clamp(-6, 6).numpy()
    wanted = inside.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    got = codes(FORMATS["nvfp4"], pack(e2m1(values).repeat_interleave(2)))[::2]
    np.testing.assert_array_equal(got.numpy(), wanted)


def test_packing_is_the_inverse_of_unpacking() -> None:
    payload = torch.arange(256, dtype=torch.uint8).view(2, 128)
    assert torch.equal(pack(unpack(payload)), payload)
