from __future__ import annotations

import onnx
import pytest

from dgemma.engine.graph import ROW_INPUTS, pool_names
from dgemma.errors import ConfigurationError
from dgemma_build.envelope import Envelope
from dgemma_build.profiles import Profile, profiles
from tests.dgemma_build.graphs import GEOMETRY, graph

L = GEOMETRY.canvas_length
ENVELOPE = Envelope(slots=3, rows=6, context=64)


def one(envelope: Envelope = ENVELOPE) -> Profile:
    (profile,) = profiles(graph().graph, GEOMETRY, envelope)
    return profile


def test_every_input_of_a_pass_has_a_range_and_no_weight_has() -> None:
    assert one().keys() == {*ROW_INPUTS, "room", *pool_names(GEOMETRY)}


def test_shapes_reach_from_the_smallest_pass_to_the_whole_envelope() -> None:
    profile = one()
    assert (profile["ids"].least, profile["ids"].most) == ((1, L), (6, L))
    assert (profile["soft"].least, profile["soft"].most) == ((1, L, 64), (6, L, 64))
    assert (profile["start"].least, profile["start"].most) == ((1,), (6,))
    assert (profile["pair_to"].least, profile["pair_to"].most) == ((0,), (3,))
    assert (profile["context_index"].least, profile["context_index"].most) == ((1,), (64,))
    window = GEOMETRY.sliding_window
    assert (profile["ring_index"].least, profile["ring_index"].most) == ((1,), (window,))
    assert (profile["room"].least, profile["room"].most) == ((1,), (6 * L,))
    assert (profile["pool_k.0"].least[0], profile["pool_k.0"].most) == (1, (3, 2, window, 16))
    assert (profile["pool_v.1"].least, profile["pool_v.1"].most) == ((1, 2, 1, 32), (3, 2, 64, 32))


def test_the_typical_shape_lies_between_and_static_axes_do_not_move() -> None:
    for value in graph().graph.input:
        shapes = one(Envelope(slots=3, rows=1, context=64)).get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if shapes is None or dim.HasField("dim_value"):
                sizes = {s[axis] for s in shapes} if shapes else {dim.dim_value}
                assert sizes == {dim.dim_value}
            else:
                least, typical, most = (shape[axis] for shape in shapes)
                assert least <= typical <= most


def test_capacity_is_typically_half_more_than_an_even_spread() -> None:
    even = 6 * L * GEOMETRY.top_k_experts // GEOMETRY.num_experts
    assert one().pop("room").typical == (even + even // 2,)
    assert one(Envelope(3, 6, 64, capacity=7))["room"] == ((1,), (7,), (7,))


def test_kernels_are_chosen_for_a_context_that_is_not_the_longest() -> None:
    assert one(Envelope(3, 6, 262144))["context_index"] == ((1,), (8192,), (262144,))


def test_buckets_of_rows_do_not_overlap_and_leave_nothing_out() -> None:
    parts = profiles(graph().graph, GEOMETRY, ENVELOPE, buckets=[1, 4])
    assert [(p["ids"].least[0], p["ids"].most[0]) for p in parts] == [(1, 1), (2, 4), (5, 6)]
    assert [p["pair_from"].most for p in parts] == [(0,), (2,), (3,)]
    assert [p["room"].most for p in parts] == [(L,), (4 * L,), (6 * L,)]


@pytest.mark.parametrize("buckets", [[0], [4, 4], [6], [7], [4, 2]])
def test_buckets_that_are_no_partition_are_refused(buckets: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"rows 1 to 6 cannot be divided at \["):
        profiles(graph().graph, GEOMETRY, ENVELOPE, buckets)


@pytest.mark.parametrize(
    "envelope",
    [Envelope(0, 6, 64), Envelope(3, 0, 64), Envelope(3, 6, 0), Envelope(3, 6, 64, capacity=0)],
)
def test_an_envelope_without_room_is_refused(envelope: Envelope) -> None:
    with pytest.raises(ConfigurationError):
        profiles(graph().graph, GEOMETRY, envelope)


def test_a_dynamic_axis_without_a_known_range_is_refused_by_name() -> None:
    model = graph()
    extra = onnx.helper.make_tensor_value_info("mystery", onnx.TensorProto.INT64, ["n", 4])
    model.graph.input.append(extra)
    with pytest.raises(ConfigurationError, match=r"'mystery'.*axis 0 \(n\)"):
        profiles(model.graph, GEOMETRY, ENVELOPE)
