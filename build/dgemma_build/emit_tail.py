"""The tail's arithmetic as ONNX graphs, from a geometry alone.

Knows how to export `dgemma.tail.step`, with the embedding as a named graph input; knows nothing of
files. What sees the vocabulary is a graph of one row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import onnx
import torch
from torch import Tensor, nn

from dgemma.geometry import Geometry
from dgemma.tail import acceptance, noise, statistics, step
from dgemma.tail import graph as tail_graph
from dgemma.tail.graph import DRAW, LOOK, MOVE, Ends
from dgemma.tail.noise import FEW_TOKENS
from dgemma.tail.statistics import Head
from dgemma.tail.step import draw, look, move
from dgemma_build.emit import OPSET, silence

# What the graphs are made from, this module included.
MODULES = (sys.modules[__name__], acceptance, noise, statistics, step, tail_graph)

EMBEDDING = "embed_tokens.weight"
_KEPT = 16  # of geometries that only differ in their layers
_ROWS = 3  # of what is traced where any number will do


class _Pure(nn.Module):
    """One function of the tail, with the embedding as an argument where it takes a head."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], softcap: float) -> None:
        super().__init__()
        self.function, self.softcap = function, softcap

    def forward(self, head: Sequence[Tensor], arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.function(*(Head(e, self.softcap) for e in head), *arguments)


def emit_tail(geometry: Geometry) -> dict[str, onnx.ModelProto]:
    """Graphs by file name, for vocabularies so small that their operators are a step's time.

    Inputs and outputs are listed in `dgemma.tail.graph`; the embedding is an input named as the
    network's parameter.
    """
    size = geometry.vocab_size
    if size > FEW_TOKENS:
        return {}
    texts = _emitted(
        geometry.canvas_length, geometry.hidden_size, size, geometry.final_logit_softcapping
    )
    return {name: onnx.load_from_string(text) for name, text in texts}


@lru_cache(_KEPT)
def _emitted(length: int, hidden: int, vocab: int, softcap: float) -> tuple[tuple[str, bytes], ...]:
    sizes = {"L": length, "D": hidden, "V": vocab}
    head = {EMBEDDING: torch.zeros(vocab, hidden)}
    return (
        (LOOK.file, _export(look, LOOK, sizes, head, softcap)),
        (DRAW.file, _export(draw, DRAW, sizes, head, softcap)),
        (MOVE.file, _export(move, MOVE, sizes, {}, softcap)),
    )


def _export(
    function: Callable[..., Sequence[Tensor]],
    ends: Ends,
    sizes: Mapping[str, int],
    head: Mapping[str, Tensor],
    softcap: float,
) -> bytes:
    sizes = {**sizes, "R": _ROWS if ends.any_rows else 1}
    example = tuple(torch.ones(v.shape(sizes), dtype=v.dtype) for v in ends.inputs)
    rows = {0: torch.export.Dim.DYNAMIC} if ends.any_rows else {}
    with silence(), torch.no_grad():
        program = torch.onnx.export(
            _Pure(function, softcap).eval(),
            (tuple(head.values()), example),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=((None,) * len(head), (rows,) * len(example)),
            input_names=[*head, *(value.name for value in ends.inputs)],
            output_names=[f"out.{value.name}" for value in ends.outputs],
            optimize=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()
