"""Random numbers that are a function of (seed, block, step, position) and of nothing else.

Knows counter-based hashing; knows neither rows nor neighbours, so a request draws the same numbers
alone and in a crowd, on any device. All arithmetic is on 32-bit integers that wrap.
Shapes: R rows, L canvas length, t token ids of a vocabulary tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INITIAL, SAMPLE, RENOISE = range(3)  # what a number is drawn for

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(word: int) -> int:
    """A 32-bit word as the int32 with the same bits."""
    return word - 2**32 if word >= 2**31 else word


_POSITION = _signed(0x9E3779B1)
_TOKEN = _signed(0x85EBCA77)
_MIX_1 = _signed(0x7FEB352D)
_MIX_2 = _signed(0x846CA68B)


@dataclass(frozen=True)
class Key:
    """64 bits that name one draw of one canvas; two int32 words."""

    low: int
    high: int

    @classmethod
    def of(cls, seed: int, block: int, step: int, purpose: int) -> Key:
        """splitmix64 (Steele et al., 2014) over the four numbers in turn."""
        state = 0
        for word in (seed, block, step, purpose):
            state = (state ^ word) + _GOLDEN & _MASK64
            state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
            state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK64
            state ^= state >> 31
        return cls(_signed(state & 0xFFFFFFFF), _signed(state >> 32))


def mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser (`lowbias32`, Wellons 2018); int32 in and out, any shape."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _MIX_1
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _MIX_2
    return x ^ ((x >> 16) & 0xFFFF)


def uniform_ids(keys: list[Key], length: int, vocab_size: int, device: torch.device) -> Tensor:
    """Uniform token ids, int64 `[R, L]`."""
    words = mix(_positions(keys, length, device) ^ _high(keys, device)).long() & 0xFFFFFFFF
    return (words * vocab_size) >> 32


def gumbel(keys: list[Key], length: int, first: int, last: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise of token ids `first..last-1`, fp32 `[R, L, t]`.

    `argmax(z + gumbel)` is a sample of `softmax(z)`, and it can be taken tile by tile.
    """
    tokens = torch.arange(first, last, dtype=torch.int32, device=device) * _TOKEN
    words = mix(_positions(keys, length, device)[..., None] ^ (tokens + _high(keys, device)[..., None]))
    # 23 bits and a half: never 0 and never 1, so both logarithms are finite.
    uniform = (((words >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


def _positions(keys: list[Key], length: int, device: torch.device) -> Tensor:
    low = torch.tensor([[key.low] for key in keys], dtype=torch.int32, device=device)
    index = torch.arange(length, dtype=torch.int32, device=device)
    return mix(index * _POSITION + low)  # [R, L]


def _high(keys: list[Key], device: torch.device) -> Tensor:
    return torch.tensor([[key.high] for key in keys], dtype=torch.int32, device=device)  # [R, 1]
