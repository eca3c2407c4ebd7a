"""Contexts are read when their layer's turn has come, and what is computed stays the same bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from dgemma.precision import policy_of
from dgemma_build.cut import cut
from dgemma_build.in_turn import in_turn
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.graphs import GEOMETRY, graph, quantized_graph
from tests.dgemma_build.quantized import attach, quantize_network
from tests.stitching import mixed_pass, outputs, signature

DEPTH = len(GEOMETRY.layers)


def in_order() -> onnx.ModelProto:
    model = graph()
    in_turn(model, GEOMETRY)
    return model


def needs(model: onnx.ModelProto, value: str) -> set[str]:
    """All that `value` is computed from, itself included."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found, open_ends = {value}, [value]
    while open_ends:
        if (node := producers.get(open_ends.pop())) is not None:
            new = set(node.input) - found
            found |= new
            open_ends += new
    return found


def consumers(model: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if value in node.input]


@pytest.mark.parametrize("layer", range(DEPTH))
@pytest.mark.parametrize("kind", "kv")
def test_a_context_is_read_after_the_layer_before(layer: int, kind: str) -> None:
    plain, ordered = graph(), in_order()
    entrance = cut(plain.graph, DEPTH).residual[layer]
    for model, waits in ((plain, False), (ordered, True)):
        nodes = consumers(model, f"pool_{kind}.{layer}")
        (lines,) = (node for node in nodes if node.op_type == "Reshape")
        (read,) = consumers(model, lines.output[0])
        assert read.op_type == "Gather"
        assert (entrance in needs(model, read.output[0])) == waits


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_a_bank_is_dequantised_after_attention(precision: str) -> None:
    plain = quantized_graph(precision)
    ordered = quantized_graph(precision)
    in_turn(ordered, GEOMETRY)
    for model, waits in ((plain, False), (ordered, True)):
        for name in ("gate_up_proj", "down_proj"):
            (value,) = consumers(model, f"layers.1.experts.{name}")
            assert value.op_type == "DequantizeLinear"
            awaited = needs(model, value.output[0])
            assert ("layers.1.self_attn.o_proj.weight" in awaited) == waits


def test_the_results_are_the_same_bits() -> None:
    weights, feeds = random_network(GEOMETRY), mixed_pass(GEOMETRY)
    plain, ordered = outputs(graph(), weights, feeds), outputs(in_order(), weights, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(plain, ordered, strict=True))


def test_quantised_banks_give_the_same_up_to_rounding() -> None:
    network, feeds = random_network(GEOMETRY), mixed_pass(GEOMETRY)
    stored = quantize_network(network, policy_of("int4"))
    plain = quantized_graph("int4", dtype=torch.float32)
    ordered = quantized_graph("int4", dtype=torch.float32)
    in_turn(ordered, GEOMETRY)
    onnx.checker.check_model(ordered, full_check=True)
    for model in (plain, ordered):
        attach(model, stored)
    both = zip(outputs(plain, network, feeds), outputs(ordered, network, feeds), strict=True)
    for mine, other in both:
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_the_graph_stays_valid_and_is_called_with_the_same() -> None:
    model = in_order()
    onnx.checker.check_model(model, full_check=True)
    assert signature(model) == signature(graph())
