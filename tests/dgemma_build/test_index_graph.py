from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from onnx import ValueInfoProto

from dgemma.engine.graph import INDEX_INPUTS, TOKENS, pool_names
from dgemma.model.checkpoint import parameter_shapes
from dgemma_build.index_graph import split_index
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network
from tests.shared import emitted
from tests.stitching import mixed_pass, outputs, weights_of

GEOMETRY = geometry_of(hidden_size=24, vocab_size=40)
SHAPES = parameter_shapes(GEOMETRY)


@pytest.fixture(params=[False, True], ids=["capacity", "fused"])
def whole(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return emitted(GEOMETRY, fused=request.param, shared=request.param)


def names(values: Iterable[ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def test_both_graphs_together_compute_what_the_whole_does(whole: onnx.ModelProto) -> None:
    network = random_network(GEOMETRY)
    shared = TOKENS in names(whole.graph.input)
    feeds = mixed_pass(GEOMETRY, shared)
    index, rest = split_index(whole)
    decided = outputs(index, None, {**feeds, **weights_of(network)})
    given = dict(zip(names(index.graph.output), decided, strict=True))
    assert names(rest.graph.output) == names(whole.graph.output)
    got, wanted = outputs(rest, network, {**feeds, **given}), outputs(whole, network, feeds)
    for value, a, b in zip(whole.graph.output, got, wanted, strict=True):
        assert np.array_equal(a, b), value.name


def test_the_index_is_of_places_sizes_and_scalars(whole: onnx.ModelProto) -> None:
    index, rest = split_index(whole)
    sized = {"ids", "soft", *pool_names(GEOMETRY)}
    scalars = {name for name, shape in SHAPES.items() if shape == (1,)}
    assert scalars
    assert {*names(index.graph.input)} <= {*INDEX_INPUTS, *sized, *scalars}
    for node in index.graph.node:
        assert node.op_type == "Shape" or sized.isdisjoint(node.input), node.name
    # And what needs one of those alone is in no other graph.
    assert {*names(rest.graph.input)}.isdisjoint({*INDEX_INPUTS, *scalars})


def test_no_node_is_in_both_graphs_or_in_none(whole: onnx.ModelProto) -> None:
    index, rest = split_index(whole)
    halves = [node.name for node in (*index.graph.node, *rest.graph.node)]
    assert sorted(halves) == sorted(node.name for node in whole.graph.node)
    assert len(index.graph.node) > 50
