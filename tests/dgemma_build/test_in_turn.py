"""Contexts are read when their layer's turn has come, and what is computed stays the same bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dgemma_build.cut import cut
from dgemma_build.in_turn import in_turn
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.graphs import GEOMETRY, graph
from tests.stitching import mixed_pass, outputs, signature

DEPTH = len(GEOMETRY.layers)


def in_order() -> onnx.ModelProto:
    model = graph()
    in_turn(model, GEOMETRY)
    return model


def needs(model: onnx.ModelProto, value: str) -> set[str]:
    """All that `value` is computed from."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found, open_ends = set[str](), [value]
    while open_ends:
        if (node := producers.get(open_ends.pop())) is not None:
            new = set(node.input) - found
            found |= new
            open_ends += new
    return found


@pytest.mark.parametrize("layer", range(DEPTH))
@pytest.mark.parametrize("kind", "kv")
def test_a_context_is_read_after_the_layer_before(layer: int, kind: str) -> None:
    plain, ordered = graph(), in_order()
    entrance = cut(plain.graph, DEPTH).residual[layer]
    pool = f"pool_{kind}.{layer}"
    for model, waits in ((plain, False), (ordered, True)):
        (read,) = (
            node.output[0]
            for node in model.graph.node
            if node.op_type == "Gather" and needs(model, node.input[0]) == {pool, *constants(model)}
        )
        assert (entrance in needs(model, read)) == waits


def constants(model: onnx.ModelProto) -> set[str]:
    """Shapes of the reshaping before a read."""
    return {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Reshape" and node.input[0].startswith("pool_")
    }


def test_the_results_are_the_same_bits() -> None:
    weights, feeds = random_network(GEOMETRY), mixed_pass(GEOMETRY)
    plain, ordered = outputs(graph(), weights, feeds), outputs(in_order(), weights, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(plain, ordered, strict=True))


def test_the_graph_stays_valid_and_is_called_with_the_same() -> None:
    model = in_order()
    onnx.checker.check_model(model, full_check=True)
    assert signature(model) == signature(graph())
