from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.bench.passes import passes
from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import check
from dgemma.engine.torch_reference import TorchReference
from dgemma.manifest import Manifest, Runtime
from dgemma.precision import policy_of
from dgemma_build.verify.parity import compare
from dgemma_build.verify.reference import StreamedReference
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.quantized import whole_groups
from tests.plans import write_plan

GEOMETRY = whole_groups()
CAPACITY = Capacity(slots=4, context=120, rows=8)
NETWORK = random_network(GEOMETRY)
WEIGHTS = dict(NETWORK.named_parameters())


def manifest(tmp_path: Path, precision: str = "fp32", flavour: str = "onnxruntime") -> Manifest:
    plan = write_plan(tmp_path, GEOMETRY, "bf16", runtime=Runtime(flavour, "1", None))
    return replace(plan, precision=precision, policy=policy_of(precision))


class Damaged(TorchReference):
    """Hidden states that a fault has changed."""

    def __init__(self, fault: Callable[[Tensor, Sequence[Row]], Tensor]) -> None:
        super().__init__(NETWORK, CAPACITY)
        self.fault = fault

    def forward(self, rows: Sequence[Row]) -> Tensor:
        return self.fault(super().forward(rows).clone(), rows)


def reference() -> StreamedReference:
    return StreamedReference(GEOMETRY, CAPACITY, lambda name: WEIGHTS[name].data)


def test_a_streamed_network_is_the_whole_one_and_keeps_one_layer() -> None:
    held: list[int] = []
    streamed, whole = reference(), TorchReference(NETWORK, CAPACITY)
    for layer in streamed._network.layers:
        layer.self_attn.register_forward_hook(
            lambda *_: held.append(
                sum(not p.is_meta for p in streamed._network.layers.parameters())
            )
        )
    for each in passes(GEOMETRY, CAPACITY):
        assert torch.equal(streamed.forward(each.rows), whole.forward(each.rows)), each.kind
    for ours, theirs in zip(streamed.pool.arrays, whole.pool.arrays, strict=True):
        assert (ours == theirs).all()
    most = max(len(list(layer.parameters())) for layer in NETWORK.layers)
    assert 0 < max(held) <= most
    assert all(p.is_meta for p in streamed._network.layers.parameters())


def test_passes_are_of_every_kind_and_one_engine_can_run_them() -> None:
    every = list(passes(GEOMETRY, CAPACITY))
    kinds = {each.kind for each in every}
    assert len(kinds) == 9
    mixture = next(each.rows for each in every if each.kind == "mixture")
    assert {row.denoise for row in mixture} == {True, False}
    assert any(row.partner >= 0 for row in mixture)
    longest = next(each for each in every if each.kind == "denoise, long context")
    assert longest.context > GEOMETRY.sliding_window
    one = list(passes(GEOMETRY, Capacity(1, 40, 2)))
    assert max(len(each.rows) for each in one) == 2


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("context", [32, 40, 64, 200])
def test_every_pass_is_one_that_an_engine_may_run(slots: int, context: int) -> None:
    capacity = Capacity(slots, context, 2 * slots)
    for each in passes(GEOMETRY, capacity):
        check(each.rows, GEOMETRY, capacity)
        assert all(row.end <= context for row in each.rows), each.kind


def test_an_engine_that_is_right(tmp_path: Path) -> None:
    told: list[str] = []
    engine = Damaged(lambda hidden, rows: hidden)
    every = list(passes(GEOMETRY, CAPACITY))
    found = list(compare(engine, reference(), every, manifest(tmp_path), told.append))
    assert [p.kind for p in found] == told == [each.kind for each in every]
    assert all(p.passed and p.exact and p.max_error == 0 for p in found)


def _one_element(hidden: Tensor, rows: Sequence[Row]) -> Tensor:
    hidden[-1, 0, 0] += 0.01
    return hidden


def _not_a_number(hidden: Tensor, rows: Sequence[Row]) -> Tensor:
    hidden[0, 0, 0] = torch.nan
    return hidden


def _partners(hidden: Tensor, rows: Sequence[Row]) -> Tensor:
    for i, row in enumerate(rows):
        hidden[i] *= 1.2 if row.partner >= 0 else 1.0
    return hidden


def _padding(hidden: Tensor, rows: Sequence[Row]) -> Tensor:
    for i, row in enumerate(rows):
        hidden[i, row.valid :] = torch.nan
    return hidden


@pytest.mark.parametrize(
    ("fault", "precision", "wrong"),
    [
        (_one_element, "fp32", 9),
        (_not_a_number, "fp32", 9),
        (_not_a_number, "fp8", 9),
        (_partners, "fp8", 2),  # commit with denoise, mixture
        (_one_element, "fp8", 0),  # its activations are rounded
        (_padding, "fp32", 0),  # nobody reads what a row is padded with
    ],
)
def test_an_engine_that_is_wrong(
    tmp_path: Path,
    fault: Callable[[Tensor, Sequence[Row]], Tensor],
    precision: str,
    wrong: int,
) -> None:
    every = passes(GEOMETRY, CAPACITY)
    found = compare(Damaged(fault), reference(), every, manifest(tmp_path, precision))
    kinds = {p.kind for p in found if not p.passed}
    assert len(kinds) == wrong, kinds


def test_what_a_gpu_rounds_is_held_to_a_typical_error(tmp_path: Path) -> None:
    plan = manifest(tmp_path, "bf16", "tensorrt_rtx")
    rounded = Damaged(lambda hidden, rows: hidden.bfloat16().float())
    found = list(compare(rounded, reference(), passes(GEOMETRY, CAPACITY), plan))
    assert all(p.passed and not p.exact for p in found)
    assert 0 < max(p.typical_error for p in found) < 0.01
