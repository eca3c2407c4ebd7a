from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import to_arrays
from dgemma.engine.graph import ROW_INPUTS, TOKENS, fresh_names, pool_names
from dgemma.engine.kv_pool import KVPool
from dgemma.errors import ConfigurationError
from dgemma.model.attention import RowIndex
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import policy_of
from dgemma_build.cpu import Bytes, attach_weights
from dgemma_build.emit import OPSET
from dgemma_build.precision_pass import apply_precision
from dgemma_build.store import write_store
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build import graphs
from tests.shared import emitted
from tests.stitching import attended

GEOMETRY = geometry_of(hidden_size=24, vocab_size=40)
SHAPES = parameter_shapes(GEOMETRY)
L = GEOMETRY.canvas_length


@pytest.fixture(scope="module")
def capacity_graph() -> onnx.ModelProto:
    return emitted(GEOMETRY)


@pytest.fixture(scope="module")
def fused_graph() -> onnx.ModelProto:
    return emitted(GEOMETRY, fused=True, shared=True)


@pytest.fixture(params=["capacity_graph", "fused_graph"])
def graph(request: pytest.FixtureRequest) -> onnx.ModelProto:
    model = request.getfixturevalue(request.param)
    assert isinstance(model, onnx.ModelProto)
    return model


def test_inputs_are_the_pass_the_pools_and_every_weight_by_name(graph: onnx.ModelProto) -> None:
    names = {value.name for value in graph.graph.input}
    pass_inputs = {*ROW_INPUTS, "room", *pool_names(GEOMETRY)}
    assert names <= pass_inputs | {TOKENS} | set(SHAPES)
    # Only what a graph has no use for may be missing.
    assert (pass_inputs | set(SHAPES)) - names <= {"room"}


def test_outputs_are_the_hidden_states_the_load_and_fresh_keys_and_values(
    graph: onnx.ModelProto,
) -> None:
    names = [value.name for value in graph.graph.output]
    assert names == ["hidden", "load", *fresh_names(GEOMETRY)]


def test_weights_have_the_shapes_of_the_networks(graph: onnx.ModelProto) -> None:
    for value in graph.graph.input:
        if value.name in SHAPES:
            dims = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            assert dims == SHAPES[value.name], value.name


def test_the_graph_has_no_weights_inside(graph: onnx.ModelProto) -> None:
    largest = max((torch.Size(t.dims).numel() for t in graph.graph.initializer), default=0)
    assert largest <= max(64, L * L), "only small constants of the algebra"
    assert not {t.name for t in graph.graph.initializer} & set(SHAPES)


def test_the_graph_says_nothing_of_the_machine_that_emitted_it(graph: onnx.ModelProto) -> None:
    content = graph.SerializeToString()
    assert not [part for part in (b".py", b"/site-packages", b"torch.") if part in content]


def test_a_larger_network_of_the_same_depth_has_no_larger_graph(
    capacity_graph: onnx.ModelProto,
) -> None:
    larger = parameter_shapes(graphs.GEOMETRY)
    assert larger.keys() == SHAPES.keys()
    assert elements(larger) > 10 * elements(SHAPES) > 100_000
    assert graphs.graph().ByteSize() < capacity_graph.ByteSize() * 1.1 + 4096


def elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def test_rows_slots_and_context_are_dynamic(graph: onnx.ModelProto) -> None:
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.graph.input
    }
    assert dims["ids"][1] == dims["soft"][1] == L
    for name in ROW_INPUTS:
        assert isinstance(dims[name][0], str), name
    sliding, full = dims["pool_k.0"], dims["pool_k.1"]
    assert isinstance(sliding[0], str)
    assert isinstance(full[0], str) and isinstance(full[2], str)
    if TOKENS in dims:  # a share of any size, which takes what its rows attend to
        assert isinstance(dims[TOKENS][0], str)
        assert isinstance(sliding[2], str) and sliding[2] != full[2]
    else:
        assert sliding[2] == GEOMETRY.sliding_window


def test_the_graph_is_valid_onnx_of_the_stated_opset(graph: onnx.ModelProto) -> None:
    onnx.checker.check_model(graph)
    (standard,) = (o.version for o in graph.opset_import if o.domain in ("", "ai.onnx"))
    assert standard == OPSET


def test_joined_weights_are_not_quantised(fused_graph: onnx.ModelProto) -> None:
    with pytest.raises(ConfigurationError, match="fused=True"):
        apply_precision(fused_graph, policy_of("fp8"))


def test_attached_weights_stay_outside_and_the_graph_computes_what_the_network_does(
    graph: onnx.ModelProto, tmp_path: Path
) -> None:
    import onnxruntime

    network = random_network(GEOMETRY, seed=3)
    weights = [(name, p.data) for name, p in network.named_parameters()]
    places = write_store(tmp_path / "weights", SHAPES, torch.float32, iter(weights))
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    attach_weights(
        model, {name: Bytes("weights", p.offset, p.length, "F32") for name, p in places.items()}
    )
    assert {value.name for value in model.graph.input}.isdisjoint(SHAPES)
    assert all(not t.raw_data for t in model.graph.initializer if t.name in SHAPES)
    onnx.save(model, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"))

    capacity = Capacity(slots=3, context=40, rows=4)
    pool = KVPool(GEOMETRY, 3, 40)
    generator = torch.Generator().manual_seed(1)
    for array in pool.arrays:
        array[:] = torch.randn(array.shape, generator=generator).numpy()
    soft = torch.randn(L, GEOMETRY.hidden_size, generator=generator)
    ids = torch.randint(40, (4, L), generator=generator)
    rows = [
        Row(ids[0], 2, 13, 5, False),
        Row(ids[1], 2, 18, L, True, None, 0),
        Row(ids[2], 0, 21, L, True, soft),
        Row(ids[3], 1, 0, L, False),
    ]
    arrays = to_arrays(rows, GEOMETRY, capacity)
    room = torch.arange(4 * L)
    feeds = {**arrays, TOKENS: np.arange(L), "room": room.numpy()}
    is_share = TOKENS in {value.name for value in graph.graph.input}
    taken = attended(rows, pool, GEOMETRY, capacity) if is_share else pool.arrays
    feeds |= dict(zip(pool_names(GEOMETRY), taken, strict=True))
    known = {value.name for value in session.get_inputs()}
    got = session.run(None, {k: v for k, v in feeds.items() if k in known})

    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    first, second = inputs.pop("ids"), inputs.pop("soft")
    pools = [torch.from_numpy(array) for array in pool.arrays]
    hidden, _, fresh = network(first, second, RowIndex(**inputs), room, pools)
    torch.testing.assert_close(torch.from_numpy(got[0]), hidden, rtol=1e-4, atol=1e-4)
    for output, wanted in zip(got[2:], fresh, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), wanted, rtol=1e-4, atol=1e-4)
