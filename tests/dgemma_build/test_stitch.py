from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import dgemma_build.emit
from dgemma.geometry import Geometry
from dgemma.model.attention import RowIndex
from dgemma_build.emit import emit, export
from dgemma_build.stitch import pattern, stitch
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network
from tests.stitching import kinds, mixed_pass, operations, outputs, signature


def geometry(letters: str) -> Geometry:
    """Sliding layers have as many K/V heads as query heads, full ones share them in groups."""
    return geometry_of(
        hidden_size=24, vocab_size=40, layer_types=kinds(letters), num_attention_heads=2
    )


def letters(of: Geometry) -> str:
    return "".join("F" if layer.is_full else "S" for layer in of.layers)


@pytest.fixture(scope="module")
def exports() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph of SSF and that of SFSS, each traced whole."""
    return (
        export(geometry("SSF"), torch.float32, fused=False),
        export(geometry("SFSS"), torch.float32, fused=False),
    )


@pytest.fixture(scope="module")
def short(exports: tuple[onnx.ModelProto, onnx.ModelProto]) -> onnx.ModelProto:
    """What is traced of every network whose sliding layers come first and that has one full."""
    return exports[0]


@pytest.mark.parametrize(
    ("network", "traced"),
    [
        ("SSSSSFSSSSSF", "SSFF"),
        ("SFSFSF", "SSFF"),
        ("FFSSF", "FFSS"),
        ("SSSFSSS", "SSF"),
        ("SSSS", "SS"),
        ("FFF", "FF"),
        ("SF", "SF"),
        ("S", "S"),
    ],
)
def test_two_layers_of_each_kind_are_traced(network: str, traced: str) -> None:
    assert letters(pattern(geometry(network))) == traced


def test_sizes_that_differ_are_different_kinds() -> None:
    g = geometry("SSSF")
    wide = geometry_of(layer_types=kinds("F")).layers[0]
    other = type(wide)(wide.layer_type, wide.head_dim * 2, wide.num_key_value_heads)
    mixed = Geometry(**{**vars(g), "layers": (*g.layers, other, other, other)})
    assert pattern(mixed).layers == (*g.layers[1:], other, other)


def test_a_stitched_graph_is_the_full_export(
    exports: tuple[onnx.ModelProto, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    g, (short, full) = geometry("SFSS"), exports
    traced: list[Geometry] = []

    def traces(of: Geometry, *_: object) -> onnx.ModelProto:
        traced.append(of)
        return short

    monkeypatch.setattr(dgemma_build.emit, "export", traces)
    stitched = emit(g)
    assert traced == [pattern(g)]
    assert signature(stitched) == signature(full)
    assert operations(stitched, 4) == operations(full, 4)
    onnx.checker.check_model(stitched, full_check=True)
    network, feeds = random_network(g), mixed_pass(g)
    for got, wanted in zip(
        outputs(stitched, network, feeds), outputs(full, network, feeds), strict=True
    ):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("layers", ["SSSSSF", "SFSSSSS"])
def test_a_stitched_graph_computes_what_the_network_does(
    short: onnx.ModelProto, layers: str
) -> None:
    g = geometry(layers)
    network, feeds = random_network(g, seed=3), mixed_pass(g)
    got = outputs(stitch(short, g), network, feeds)
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    ids, soft, room = (inputs.pop(name) for name in ("ids", "soft", "room"))
    pools = [inputs.pop(name) for name in [*inputs] if name.startswith("pool_")]
    hidden, load, fresh = network(ids, soft, RowIndex(**inputs), room, pools)
    for output, wanted in zip(got, (hidden, load, *fresh), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), wanted, rtol=1e-4, atol=1e-4)


def test_every_name_is_given_once(short: onnx.ModelProto) -> None:
    graph = stitch(short, geometry("SSSSF")).graph
    values = [value.name for value in (*graph.input, *graph.initializer)]
    values += [value for node in graph.node for value in node.output]
    assert len(values) == len(set(values))
    assert len(graph.node) == len({node.name for node in graph.node})


def test_free_axes_of_a_layer_are_its_own(short: onnx.ModelProto) -> None:
    """A pool may have more slots than another; rows are the same everywhere."""
    graph = stitch(short, geometry("SSSF")).graph
    axes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in (*graph.input, *graph.output)
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param
    }
    slots = [name for key, name in axes.items() if key.startswith("pool_")]
    assert len(slots) == len(set(slots)) == 8
    assert len({axes[f"fresh_k.{layer}"] for layer in range(4)} | {axes["ids"]}) == 1
