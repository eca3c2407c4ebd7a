from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from dgemma.engine.graph import (
    NUMBER,
    arrival_name,
    arrived_name,
    fresh_names,
    lines_names,
    pool_names,
    written_names,
)
from dgemma_build.index_graph import split_index
from dgemma_build.meetings import add_meetings
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network
from tests.shared import emitted
from tests.stitching import Feeds, mixed_pass, outputs, weights_of

GEOMETRY = geometry_of(hidden_size=24, vocab_size=40)
LAYERS = range(len(GEOMETRY.layers))


@pytest.fixture
def graphs() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The index, and what computes a share."""
    index, graph = split_index(emitted(GEOMETRY, fused=True, shared=True))
    add_meetings(graph, GEOMETRY)
    return index, graph


def feeds_of(index: onnx.ModelProto) -> Feeds:
    feeds = {**mixed_pass(GEOMETRY, shared=True), **weights_of(random_network(GEOMETRY))}
    decided = outputs(index, None, feeds)
    return feeds | {v.name: array for v, array in zip(index.graph.output, decided, strict=True)}


def test_a_share_is_valid_onnx_and_takes_what_shares_have_in_common(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    _, graph = graphs
    onnx.checker.check_model(graph)
    inputs = {value.name for value in graph.graph.input}
    assert inputs >= {NUMBER, *lines_names(GEOMETRY), *map(arrived_name, LAYERS)}
    got = [value.name for value in graph.graph.output]
    assert got == ["hidden", "load", *written_names(GEOMETRY), *map(arrival_name, LAYERS)]
    assert {*pool_names(GEOMETRY), *fresh_names(GEOMETRY)}.isdisjoint({*inputs, *got})


def test_each_layer_waits_until_all_shares_have_arrived_and_reads_what_they_wrote(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    """One share of all tokens, beside another that is late."""
    index, graph = graphs
    feeds = feeds_of(index)
    wanted = outputs(emitted(GEOMETRY, fused=True, shared=True), None, feeds)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    binding = session.io_binding()
    number = np.full((), 2**40 + 7)
    arrived = np.zeros((len(LAYERS), 2), np.int64)
    pools = [feeds[name] for name in pool_names(GEOMETRY)]
    lines = [array.reshape(-1, array.shape[-1]) for array in pools]
    given: Feeds = {**feeds, NUMBER: number, **dict(zip(lines_names(GEOMETRY), lines, strict=True))}
    given |= {arrived_name(layer): arrived[layer] for layer in LAYERS}
    hidden = np.empty_like(wanted[0])
    made: Feeds = {"hidden": hidden, **dict(zip(written_names(GEOMETRY), lines, strict=True))}
    made |= {arrival_name(layer): arrived[layer, 0, ...] for layer in LAYERS}
    values = [
        onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in (*given.values(), *made.values())
    ]
    for name, value in zip(given, values, strict=False):
        if name in {taken.name for taken in session.get_inputs()}:
            binding.bind_ortvalue_input(name, value)
    for name, value in zip(made, values[len(given) :], strict=True):
        binding.bind_ortvalue_output(name, value)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(session.run_with_iobinding, binding)
        try:
            for layer in LAYERS:
                with pytest.raises(TimeoutError):
                    running.result(timeout=0.1)
                assert (arrived[: layer + 1, 0] == number).all()
                assert not arrived[layer + 1 :, 0].any()
                arrived[layer, 1] = number
        finally:
            arrived[:] = number
        running.result()
    np.testing.assert_array_equal(hidden, wanted[0])


def test_pools_that_are_read_in_another_way_cannot_be_shared() -> None:
    _, graph = split_index(emitted(GEOMETRY, fused=True, shared=True))
    graph.graph.node.append(onnx.helper.make_node("Neg", ["pool_k.1"], ["odd"], name="odd"))
    with pytest.raises(ValueError, match=r"pool_k\.1 goes to Reshape, Neg, not to one Reshape"):
        add_meetings(graph, GEOMETRY)
