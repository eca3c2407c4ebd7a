from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from dgemma.engine.graph import ENTERING, LEAVING
from dgemma.geometry import Geometry
from dgemma.model.attention import RowIndex
from dgemma.precision import Policy, policy_of
from dgemma_build.chain import period, take_apart
from dgemma_build.gpu import prepare
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.graphs import GEOMETRY, graph
from tests.dgemma_build.quantized import attach, quantize_network
from tests.stitching import kinds, mixed_pass, outputs, run_chain, weights_of

TWICE = replace(GEOMETRY, layers=2 * GEOMETRY.layers)
PLAIN = policy_of("bf16")


def network(letters: str) -> Geometry:
    return geometry_of(hidden_size=24, vocab_size=40, layer_types=kinds(letters))


def prepared(precision: str) -> onnx.ModelProto:
    model = graph()
    prepare(model, GEOMETRY, policy_of(precision))
    return model


# Which layers repeat


@pytest.mark.parametrize(
    ("layers", "repeated"),
    [
        ("SSSSSF" * 5, "SSSSSF"),
        ("SFSF", "SF"),
        ("SSSS", "S"),
        ("SSSSSF", "SSSSSF"),
        ("SFSFS", "SFSFS"),
        ("FSFFSF", "FSF"),
        ("S", "S"),
    ],
)
def test_the_fewest_layers_that_repeat(layers: str, repeated: str) -> None:
    few, policy = period(network(layers), PLAIN)
    assert few == network(repeated) and policy == PLAIN


def test_layers_whose_weights_have_other_formats_do_not_repeat() -> None:
    """As in imported checkpoints that leave the last layers as they were."""
    g = network("SFSFSFSF")
    first = Policy((("layers.0.mlp.*_proj.weight", "fp8"),), "bf16")
    assert period(g, first) == (g, first)
    halves = Policy(
        tuple((f"layers.{layer}.mlp.*_proj.weight", "fp8") for layer in (1, 2, 5, 6)), "bf16"
    )
    few, policy = period(g, halves)
    assert few == network("SFSF")
    # A rule that no weight of a graph matches is refused where the graph is quantised.
    assert policy.rules == halves.rules[:2]
    every = policy_of("fp8")
    assert period(g, every) == (network("SF"), every)


# The pieces


def test_every_node_is_in_one_piece() -> None:
    """But for what both derive from a pass's integers."""
    model = prepared("bf16")
    pieces = take_apart(model, GEOMETRY)
    whole = Counter(node.op_type for node in model.graph.node)
    parts = [Counter(node.op_type for node in piece.graph.node) for piece in pieces]
    assert whole <= parts[0] + parts[1]
    named = [{value for node in piece.graph.node for value in node.output} for piece in pieces]
    twice = (named[0] & named[1]) - {LEAVING}
    assert (parts[0] + parts[1]).total() - whole.total() == len(twice)
    assert all(value.startswith("unsqueeze") for value in twice), twice


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
def test_pieces_are_valid_graphs(precision: str) -> None:
    model = prepared(precision)
    before, layers = take_apart(model, GEOMETRY)
    for piece in (before, layers):
        onnx.checker.check_model(piece, full_check=True)
    names = [[value.name for value in piece.graph.input] for piece in (before, layers)]
    assert {"ids", "soft", "denoise"} <= set(names[0])
    assert not [name for name in names[0] if name.startswith(("layers.", "pool_"))]
    assert set(names[0]) & set(names[1]) == {"denoise"}
    assert {*names[0], *names[1]} == {ENTERING, *(value.name for value in model.graph.input)}
    assert [value.name for value in before.graph.output] == [LEAVING]
    assert [value.name for value in layers.graph.output] == [
        LEAVING,
        *(value.name for value in model.graph.output),
    ]


def test_what_is_taken_apart_stays_as_it_was() -> None:
    model = prepared("bf16")
    take_apart(model, GEOMETRY)
    assert model == prepared("bf16")


# What a chain computes


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
def test_cutting_changes_no_bit(precision: str) -> None:
    source, feeds = random_network(GEOMETRY), mixed_pass(GEOMETRY)
    model = prepared(precision)
    pieces = take_apart(model, GEOMETRY)
    if precision != "bf16":
        stored = quantize_network(source, policy_of(precision))
        for graph_ in (model, *pieces):
            attach(graph_, stored)
    found = run_chain(pieces, GEOMETRY, 1, feeds | weights_of(source))
    for value, wanted in zip(model.graph.output, outputs(model, source, feeds), strict=True):
        assert np.array_equal(found[value.name], wanted), value.name


def test_a_period_with_other_weights_and_pools_is_the_next_one() -> None:
    source, feeds = random_network(TWICE, seed=3), mixed_pass(TWICE)
    pieces = take_apart(prepared("bf16"), GEOMETRY)
    found = run_chain(pieces, GEOMETRY, 2, feeds | weights_of(source))
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    ids, soft, room = (inputs.pop(name) for name in ("ids", "soft", "room"))
    pools = [inputs.pop(name) for name in [*inputs] if name.startswith("pool_")]
    hidden, load, fresh = source(ids, soft, RowIndex(**inputs), room, pools)
    assert int(found["load"]) == int(load)
    fresh_names = [f"fresh_{kind}.{layer}" for layer in range(4) for kind in "kv"]
    for name, wanted in zip(("hidden", *fresh_names), (hidden, *fresh), strict=True):
        torch.testing.assert_close(torch.from_numpy(found[name]), wanted, rtol=1e-4, atol=1e-4)
