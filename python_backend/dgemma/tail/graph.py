"""Ends of the tail's graphs, shared by who emits them and who runs them.

Knows names, shapes and order; knows nothing of ONNX or of a runtime.
Shapes: L canvas length, D hidden size, V vocabulary; always one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Value(NamedTuple):
    """An input or output of a graph."""

    name: str
    dtype: torch.dtype
    axes: str = ""  # besides the row

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return (1, *(sizes.get(axis, 1) for axis in self.axes))


class Ends(NamedTuple):
    """One graph, in the order of its function's arguments and results in `dgemma.tail.step`."""

    file: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


_WEIGHT = (Value("weight", torch.float32, "LV"), Value("mass", torch.float32, "L"))

LOOK = Ends(
    "tail_look.onnx",
    (
        Value("hidden", torch.float32, "LD"),
        Value("temperature", torch.float32, "11"),
        Value("bound", torch.float32, "1"),
        Value("last", torch.int64, "L"),
        Value("free", torch.bool, "L"),
    ),
    (
        Value("out.argmax", torch.int64, "L"),
        Value("out.accepted", torch.bool, "L"),
        Value("out.entropy", torch.float32, "L"),
        Value("out.mean", torch.float32),
        Value("out.same", torch.bool),
        *(value._replace(name=f"out.{value.name}") for value in _WEIGHT),
    ),
)
MOVE = Ends(
    "tail_move.onnx",
    (
        *_WEIGHT,
        Value("accepted", torch.bool, "L"),
        Value("renoise", torch.int64, "L"),
        Value("positions", torch.int32, "L1"),
        Value("tokens", torch.int32, "1V"),
    ),
    (Value("out.ids", torch.int64, "L"), Value("out.soft", torch.float32, "LD")),
)
