from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.engine.base import Capacity
from dgemma.engine.binding_plan import ALIGNMENT, DESCRIPTION, EMBEDDING, Arena, BindingPlan
from dgemma.engine.buckets import Bucket
from dgemma.engine.graph import pool_names
from dgemma.engine.weight_bindings import stored_as, weight_inputs
from dgemma.errors import ConfigurationError
from dgemma.manifest import Binding, Manifest
from tests.dgemma_build.quantized import whole_groups
from tests.plans import BEFORE, PLAN, write_chain, write_plan

GEOMETRY = whole_groups()
CAPACITY = Capacity(slots=3, context=100, rows=6)
LARGEST = Bucket(rows=6, pairs=3, context=100, ring=12, room=48)
GATE = "layers.0.mlp.gate_proj.weight"


@pytest.fixture(params=["bf16", "fp8", "int4", "nvfp4"])
def manifest(tmp_path: Path, request: pytest.FixtureRequest) -> Manifest:
    return write_plan(tmp_path, GEOMETRY, request.param)


def test_every_binding_has_one_place_and_no_two_overlap(manifest: Manifest) -> None:
    plan = BindingPlan.of(manifest, CAPACITY, LARGEST)
    arenas = (plan.pass_, plan.pools, plan.weights)
    names = [name for arena in arenas for name in arena.places]
    assert sorted(names) == sorted(binding.name for binding in manifest.bindings)
    for arena in arenas:
        end = 0
        for place in arena.places.values():
            assert place.offset >= end and place.offset % ALIGNMENT == 0
            end = place.offset + max(1, place.nbytes)
        assert end <= arena.nbytes


def test_places_are_of_the_largest_pass(manifest: Manifest) -> None:
    plan = BindingPlan.of(manifest, CAPACITY, LARGEST)
    assert plan.pass_.places["ids"].shape == (6, GEOMETRY.canvas_length)
    assert plan.pass_.places["ids"].nbytes == 6 * GEOMETRY.canvas_length * 8
    assert plan.pass_.places["hidden"].shape == (6, GEOMETRY.canvas_length, 64)
    assert plan.pools.places["pool_k.0"].shape == (3, 2, 12, 16)
    assert plan.pools.places["pool_v.1"].shape == (3, 2, 100, 32)
    assert list(plan.pools.places) == pool_names(GEOMETRY)
    small = plan.shapes(Bucket(rows=2, pairs=0, context=64, ring=12, room=8))
    assert small["ids"] == (2, GEOMETRY.canvas_length) and small["pair_to"] == (0,)
    assert small["context_index"] == (64,) and small["room"] == (8,)
    assert small["pool_v.1"] == (3, 2, 100, 32)  # what a pass reads of it varies, not what it is


def test_weights_take_the_bytes_that_the_store_has() -> None:
    assert stored_as(Binding("w", "I4", (4, 128, 64), True)).nbytes == 4 * 128 * 32
    assert stored_as(Binding("w", "BF16", (4, 64), True)).nbytes == 4 * 64 * 2


def test_what_describes_a_pass_is_the_head_of_its_arena(manifest: Manifest) -> None:
    plan = BindingPlan.of(manifest, CAPACITY, LARGEST)
    for name, place in plan.pass_.places.items():
        assert (place.offset < plan.description_bytes) == (name in DESCRIPTION)


def test_an_empty_tensor_has_an_address_of_its_own() -> None:
    arena = Arena.of([("a", "I64", (0,)), ("b", "I64", (1,))])
    assert arena.places["a"].offset != arena.places["b"].offset
    assert arena.nbytes == 2 * ALIGNMENT


def test_what_is_needed_is_told_by_what_it_is_for(manifest: Manifest) -> None:
    needs = BindingPlan.of(manifest, CAPACITY, LARGEST).needs
    assert needs.keys() == {"weights", "K/V pools", "inputs and outputs"}
    assert needs["K/V pools"] >= 2 * 2 * 3 * 2 * (12 * 16 + 100 * 32)


def test_a_plan_of_another_kind_of_pass(manifest: Manifest) -> None:
    odd = replace(manifest, bindings=(*manifest.bindings, Binding("new", "I64", (-1,), False)))
    with pytest.raises(ConfigurationError, match="new: axis 0 of the plan is not known; build it"):
        BindingPlan.of(odd, CAPACITY, LARGEST)
    without = tuple(b for b in manifest.bindings if b.name != "pair_to")
    plan = BindingPlan.of(replace(manifest, bindings=without), CAPACITY, LARGEST)
    with pytest.raises(ConfigurationError, match="lacks the inputs pair_to; build it again"):
        plan.check("plan.engine")


def test_a_plan_that_holds_its_weights_leaves_the_embedding_to_the_tail(
    manifest: Manifest,
) -> None:
    weights = {b.name for b in weight_inputs(manifest)}
    whole = replace(manifest, bindings=tuple(b for b in manifest.bindings if b.name not in weights))
    plan = BindingPlan.of(whole, CAPACITY, LARGEST)
    assert list(plan.weights.places) == [EMBEDDING]
    (execution,) = plan.executions()
    assert EMBEDDING not in execution.tensors
    assert plan.weights.places[EMBEDDING].shape == (GEOMETRY.vocab_size, GEOMETRY.hidden_size)
    assert plan.weights.places[EMBEDDING].dtype == "BF16"


def test_what_leaves_one_execution_enters_the_next(tmp_path: Path) -> None:
    manifest = write_chain(tmp_path, GEOMETRY, "bf16")
    plan = BindingPlan.of(manifest, CAPACITY, LARGEST)
    before, first, second = plan.executions()
    assert [e.file for e in (before, first, second)] == [BEFORE, PLAN, PLAN]
    for one, other in ((before, first), (first, second)):
        assert one.tensors["leaving"].place == other.tensors["entering"].place
    for execution in (first, second):
        places = [t.place for t in execution.tensors.values()]
        assert len(set(places)) == len(places), "nothing is read and written at once"
    assert first.tensors[GATE].place == GATE
    assert second.tensors[GATE].place == "layers.2.mlp.gate_proj.weight"
    assert second.tensors["pool_k.1"].place == "pool_k.3"
    assert second.tensors["fresh_v.0"].place == "fresh_v.2"
    assert second.tensors["start"].place == "start"


def test_each_execution_has_a_load_of_its_own(tmp_path: Path) -> None:
    manifest = write_chain(tmp_path, GEOMETRY, "bf16")
    plan = BindingPlan.of(manifest, CAPACITY, LARGEST)
    loads = [e.tensors["load"].offset for e in plan.executions() if "load" in e.tensors]
    assert loads == [0, ALIGNMENT]
    assert plan.pass_.places["load"].nbytes == 2 * ALIGNMENT
