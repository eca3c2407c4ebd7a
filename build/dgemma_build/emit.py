"""The network as an ONNX graph, from a geometry alone.

Knows how to export the torch modules with every dynamic axis and with the weights as named graph
inputs, so that no weight is ever read here; knows nothing of targets, precisions or files.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dgemma.engine.graph import ROW_INPUTS, TOKENS, fresh_names, pool_names
from dgemma.geometry import Geometry
from dgemma.model.attention import RowIndex
from dgemma.model.network import Network
from dgemma_build.stitch import pattern, stitch

OPSET = 23  # the first with RMSNormalization

# Sizes of the example that is traced. They only have to differ from each other and from every
# size of the geometry, so that no dynamic axis is mistaken for a static one.
_ROWS, _PAIRS, _SLOTS, _CONTEXT, _RING, _ROOM, _TOKENS = 3, 2, 5, 131, 61, 59, 53


class _PureNetwork(nn.Module):
    """The network with its weights as arguments."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.inner = [network]  # in a list: its parameters are arguments, not attributes
        self.names = [name for name, _ in network.named_parameters()]

    def forward(
        self,
        rows: Sequence[Tensor],
        room: Tensor,
        pools: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        ids, soft, *index = rows
        arguments = (ids, soft, RowIndex(*index), room, list(pools))
        parameters = dict(zip(self.names, weights, strict=True))
        return torch.func.functional_call(  # type: ignore[no-any-return]
            self.inner[0], parameters, arguments
        )


def emit(
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
    fused: bool = False,
    shared: bool = False,
) -> onnx.ModelProto:
    """The graph of one pass; weights are inputs named as `Network`'s parameters.

    Inputs and outputs are listed in `dgemma.engine.graph`; with `shared`, which of each row's
    tokens are computed is an input too, and a pool is what the rows of a pass attend to. Takes no
    memory for weights, and some seconds for each layer that is exported: of networks with more than
    two layers of a kind only the `pattern` is, and the graph of all layers is stitched from it.
    """
    few = pattern(geometry)
    if len(few.layers) == len(geometry.layers):
        return export(geometry, dtype, fused, shared)
    return stitch(export(few, dtype, fused, shared), geometry)


def export(
    geometry: Geometry, dtype: torch.dtype, fused: bool, shared: bool = False
) -> onnx.ModelProto:
    """What `emit` gives, with every layer traced; the time grows faster than their number."""
    row_inputs = (*ROW_INPUTS, TOKENS) if shared else ROW_INPUTS
    with torch.device("meta"):
        network = Network(geometry, fused).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = _example(geometry, network, dtype, shared)
        with silence(), torch.no_grad():
            program = torch.onnx.export(
                _PureNetwork(network),
                arguments,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=_dynamic_axes(geometry, len(arguments[3]), shared),
                input_names=[*row_inputs, "room", *pool_names(geometry), *_weight_names(network)],
                output_names=["hidden", "load", *fresh_names(geometry)],
                optimize=True,
                verbose=False,
            )
    assert program is not None
    return _without_remarks(program.model_proto)


def _without_remarks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the exporter notes about itself: call stacks with paths of this machine."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    return model


@contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's remarks, which name nothing that a user could change, off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _weight_names(network: Network) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def _example(
    geometry: Geometry, network: Network, dtype: torch.dtype, shared: bool
) -> tuple[Any, ...]:
    length = geometry.canvas_length

    def integers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    index = [torch.zeros(_ROWS, dtype=torch.bool), *(integers(_ROWS) for _ in range(3))]
    rows = (
        integers(_ROWS, length),
        torch.zeros(_ROWS, length, geometry.hidden_size, dtype=dtype),
        *index,
        integers(_PAIRS),
        integers(_PAIRS),
        integers(_CONTEXT),
        integers(_RING),
        *([integers(_TOKENS)] if shared else []),
    )
    pools = []
    for layer in geometry.layers:
        slots, size = _SLOTS, _CONTEXT + 7 if layer.is_full else geometry.sliding_window
        if shared:
            slots, size = _ROWS, (_CONTEXT if layer.is_full else _RING) + length
        shape = (slots, layer.num_key_value_heads, size, layer.head_dim)
        pools += [torch.zeros(shape, dtype=dtype) for _ in "kv"]
    weights = [torch.empty(p.shape, dtype=dtype) for p in network.parameters()]
    return rows, integers(_ROOM), tuple(pools), tuple(weights)


def _dynamic_axes(geometry: Geometry, weights: int, shared: bool) -> tuple[Any, ...]:
    auto = torch.export.Dim.DYNAMIC
    rows: tuple[dict[int, Any], ...] = tuple({0: auto} for _ in ROW_INPUTS)
    if shared:
        rows = (*rows, {0: auto})
    pools = tuple(
        {0: auto, 2: auto} if layer.is_full or shared else {0: auto}
        for layer in geometry.layers
        for _ in "kv"
    )
    return rows, {0: auto}, pools, (None,) * weights
