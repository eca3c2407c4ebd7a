"""Kernels with whom something is wrong, each with one thing, and one with whom nothing is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.variant import Variant
from dgemma.geometry import Geometry


@triton.jit
def _scaled(x, out, SIZE: tl.constexpr):
    """Holds all of its values from the sum to the quotients."""
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(out + at, values / tl.sum(values, 0))


@triton.jit
def _product(a, b, out, length, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, length, K):
        left = tl.load(a + m[:, None] * length + start + k[None, :])
        right = tl.load(b + n[:, None] * length + start + k[None, :])
        total = tl.dot(left, right.T, total)
    tl.store(out + m[:, None] * N + n[None, :], total)


class Deadly(dict[str, str]):
    """A signature that ends whatever process reads it."""

    def __iter__(self) -> Iterator[str]:
        os._exit(9)


def scaled(name: str, size: int, **options: Any) -> Variant:
    return Variant(name, _scaled, {"x": "*fp32", "out": "*fp32"}, {"SIZE": size}, **options)


def product(name: str, size: int, k: int, of: str = "*bf16", **options: Any) -> Variant:
    signature = {"a": of, "b": of, "out": "*fp32", "length": "i32"}
    constants = {"M": size, "N": size, "K": k}
    return Variant(name, _product, signature, constants, frozenset({"length"}), **options)


def fit(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    yield scaled("fits", 1024)
    yield product("multiplies", 64, 64)


def unfit(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    yield from fit(geometry, chip)
    yield product("spills", 256, 64)
    yield scaled("spills for a reason", 65536, reason="as a test of it")
    yield scaled("spills where it does not matter", 65536, hot=False)
    yield product("too large", 64, 256, num_stages=6)
    yield product("of a type that it cannot sum up", 64, 64, of="*fp64")
    yield Variant("lacks an argument", _scaled, {"x": "*fp32", "out": "*fp32"})
    yield Variant("ends its process", _scaled, Deadly())
