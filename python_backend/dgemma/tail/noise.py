"""Random numbers that are a function of (seed, block, step, position) and of nothing else.

Knows counter-based hashing; knows neither rows nor neighbours, so a request draws the same numbers
alone and in a crowd, on any device. All arithmetic is on 32-bit integers that wrap.
Shapes: R rows, L canvas length, t token ids of a vocabulary tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

INITIAL, SAMPLE, RENOISE = range(3)  # what a number is drawn for

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(word: int) -> int:
    """A 32-bit word as the int32 with the same bits."""
    return word - 2**32 if word >= 2**31 else word


def _scalar(word: int) -> Tensor:
    """A constant of the arithmetic below; Python's own numbers are converted at every use."""
    return torch.tensor(_signed(word), dtype=torch.int32, device="cpu")


_ONNX_INT32, _ONNX_UINT32 = 6, 12  # onnx.TensorProto's numbers
_POSITION = _signed(0x9E3779B1)
_TOKEN = _signed(0x85EBCA77)
_MIX_1, _MIX_2 = _scalar(0x7FEB352D), _scalar(0x846CA68B)
_15, _16 = _scalar(15), _scalar(16)
_32, _LOW_32 = torch.tensor(32, device="cpu"), torch.tensor(0xFFFFFFFF, device="cpu")
_HALF = torch.tensor(0.5 + 2.0**-24, device="cpu")
_LOW_16, _LOW_17, _UPPER_23 = _scalar(0xFFFF), _scalar(0x1FFFF), _scalar(0xFFFFFE00)


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
    x = (x ^ ((x >> _16) & _LOW_16)) * _MIX_1
    x = (x ^ ((x >> _15) & _LOW_17)) * _MIX_2
    return x ^ ((x >> _16) & _LOW_16)


FEW_TOKENS = 4096  # a vocabulary whose hashes are kept with the keys


@dataclass(frozen=True)
class Words:
    """Hashed keys: what the numbers of one draw are made of."""

    positions: Tensor  # int32 [R, L]
    high: Tensor  # int32 [R, 1], the half of each key that is not in `positions`
    tokens: Tensor | None = None  # int32 [R, V], hashed with `high`, where the vocabulary is small

    def rows(self, first: int, last: int) -> Words:
        """Those of the keys `first..last-1`."""
        tokens = None if self.tokens is None else self.tokens[first:last]
        return Words(self.positions[first:last], self.high[first:last], tokens)

    @classmethod
    def joined(cls, parts: Sequence[Words]) -> Words:
        """The keys of all parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        return cls(
            torch.cat([part.positions for part in parts]),
            torch.cat([part.high for part in parts]),
            torch.cat(tokens) if tokens else None,
        )


class Noise:
    """Hashes keys with positions and token ids; holds the constant parts of both."""

    def __init__(self, length: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.positions = torch.arange(length, dtype=torch.int32, device=device) * _POSITION
        self.tokens = torch.arange(vocab_size, dtype=torch.int32, device=device) * _TOKEN

    def words(self, keys: Sequence[Key]) -> Words:
        """A hash per key and position."""
        halves = torch.tensor([(k.low, k.high) for k in keys], dtype=torch.int32)
        low, high = halves.to(self.positions.device)[:, :, None].unbind(1)
        return Words(mix(self.positions + low), high)

    def with_tokens(self, words: Words) -> Words:
        """The same, prepared for `exponential` where that takes little memory."""
        if self.vocab_size > FEW_TOKENS:
            return words
        return replace(words, tokens=self._tokens(words, 0, self.vocab_size))

    def _tokens(self, words: Words, first: int, last: int) -> Tensor:
        """int32 `[R, t]`"""
        if words.tokens is not None:
            return words.tokens[:, first:last]
        return mix(self.tokens[first:last] + words.high)

    def ids(self, words: Words) -> Tensor:
        """Uniform token ids, int64 `[R, L]`."""
        mixed = mix(words.positions ^ words.high).long() & _LOW_32
        return (mixed * self.vocab_size) >> _32

    def exponential(self, words: Words, first: int, last: int) -> Tensor:
        """Exponential noise of token ids `first..last-1`, fp32 `[R, L, t]`, never 0.

        Dividing probabilities by it and taking the largest samples them (an exponential race, the
        Gumbel-max trick without its outer logarithm), and it can be done tile by tile.
        """
        return exponential(words.positions[..., None], self._tokens(words, first, last)[:, None])


@dataclass(frozen=True)
class Race:
    """Exponential noise of every position and token, a range of ids at a time."""

    noise: Noise
    words: Words

    def __call__(self, first: int, last: int) -> Tensor:
        """Of token ids `first..last-1`, fp32 `[R, L, t]`."""
        return self.noise.exponential(self.words, first, last)


def exponential(positions: Tensor, tokens: Tensor) -> Tensor:
    """Exponential noise `[R, L, t]` of mixed words: positions `[R, L, 1]` and ids `[R, 1, t]`."""
    # Both are mixed already; two products and a shift make their combination random.
    x = positions ^ tokens
    x = x.mul_(_MIX_1)
    x = x.bitwise_xor_(_upper_17(x)).mul_(_MIX_2)
    # The upper 23 bits and a half: u is never 0 and never 1.
    u = torch.add(_HALF, x.bitwise_and_(_UPPER_23), alpha=2.0**-32)
    return u.log_().neg_()


def _upper_17(x: Tensor) -> Tensor:
    """`x >> 15` of the words as unsigned numbers."""
    if not torch.compiler.is_exporting():
        return (x >> _15).bitwise_and_(_LOW_17)
    # ONNX shifts unsigned numbers only, and torch's own export makes eight operators of that.
    node = partial(torch.onnx.ops.symbolic, shape=x.shape)
    words = node("Cast", [x], {"to": _ONNX_UINT32}, dtype=torch.uint32)
    places = torch.tensor(15, dtype=torch.int64).to(torch.uint32)
    upper = node("BitShift", [words, places], {"direction": "RIGHT"}, dtype=torch.uint32)
    return node("Cast", [upper], {"to": _ONNX_INT32}, dtype=torch.int32)
