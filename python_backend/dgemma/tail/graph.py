"""Ends of the tail's graphs, shared by who emits them and who runs them.

Knows names, shapes and order; knows nothing of ONNX or of a runtime.
Shapes: R rows, L canvas length, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Value(NamedTuple):
    """An input or output of a graph; its first axis is R."""

    name: str
    dtype: torch.dtype
    axes: str = ""  # besides R, 1 among them

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sizes.get(axis, 1) for axis in f"R{self.axes}")


class Ends(NamedTuple):
    """One graph, in the order of its function's arguments and results in `dgemma.tail.step`."""

    file: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    any_rows: bool = False  # or one, where more of them would not fit a core's cache


_WEIGHT = (Value("weight", torch.float32, "LV"), Value("mass", torch.float32, "L"))

LOOK = Ends(
    "tail_look.onnx",
    (Value("hidden", torch.float32, "LD"), Value("temperature", torch.float32, "11")),
    (Value("argmax", torch.int64, "L"), Value("entropy", torch.float32, "L"), *_WEIGHT),
)
DRAW = Ends(
    "tail_draw.onnx",
    (*_WEIGHT, Value("positions", torch.int32, "L1"), Value("tokens", torch.int32, "1V")),
    (Value("sampled", torch.int64, "L"), Value("soft", torch.float32, "LD")),
)
MOVE = Ends(
    "tail_move.onnx",
    (
        Value("argmax", torch.int64, "L"),
        Value("entropy", torch.float32, "L"),
        Value("bound", torch.float32, "1"),
        Value("last", torch.int64, "L"),
        Value("free", torch.bool, "L"),
    ),
    (
        Value("accepted", torch.bool, "L"),
        Value("mean", torch.float32),
        Value("same", torch.bool),
    ),
    any_rows=True,
)
# Besides those of the graphs: the tokens in place of what is not accepted.
RENOISE = Value("renoise", torch.int64, "L")
