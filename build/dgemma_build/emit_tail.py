"""The tail's arithmetic as ONNX graphs of one row, from a geometry alone.

Knows how to export `dgemma.tail.step`, with the embedding as a named graph input; knows nothing of
files. One row, because no row may round otherwise for its neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

import onnx
import torch
from torch import Tensor, nn

from dgemma.geometry import Geometry
from dgemma.tail import acceptance, noise, statistics, step
from dgemma.tail import graph as tail_graph
from dgemma.tail.graph import LOOK, MOVE, Ends
from dgemma.tail.noise import FEW_TOKENS
from dgemma.tail.statistics import Head
from dgemma.tail.step import look, move
from dgemma_build.emit import OPSET, silence

# What the graphs are made from, this module included.
MODULES = (sys.modules[__name__], acceptance, noise, statistics, step, tail_graph)

EMBEDDING = "embed_tokens.weight"
_KEPT = 16  # of geometries that only differ in their layers


class _Pure(nn.Module):
    """One function of the tail with the embedding as its first argument."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], softcap: float) -> None:
        super().__init__()
        self.function, self.softcap = function, softcap

    def forward(self, embedding: Tensor, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.function(Head(embedding, self.softcap), *arguments)


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
    embedding = torch.zeros(vocab, hidden)
    sizes = {"L": length, "D": hidden, "V": vocab}
    parts: list[tuple[Ends, Callable[..., Sequence[Tensor]]]] = [(LOOK, look), (MOVE, move)]
    graphs = []
    for ends, function in parts:
        example = tuple(torch.ones(v.shape(sizes), dtype=v.dtype) for v in ends.inputs)
        with silence(), torch.no_grad():
            program = torch.onnx.export(
                _Pure(function, softcap).eval(),
                (embedding, example),
                dynamo=True,
                opset_version=OPSET,
                input_names=[EMBEDDING, *(v.name for v in ends.inputs)],
                output_names=[v.name for v in ends.outputs],
                optimize=True,
                verbose=False,
            )
        assert program is not None
        graphs.append((ends.file, program.model_proto.SerializeToString()))
    return tuple(graphs)
