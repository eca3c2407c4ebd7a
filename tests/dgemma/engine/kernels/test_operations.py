"""Whole passes by the torch engine with kernels, each operation against plain torch on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dgemma.bench.agreement import agreement
from dgemma.bench.passes import passes
from dgemma.bench.random_weights import random_weights
from dgemma.engine import reference
from dgemma.engine.base import Capacity
from dgemma.engine.device import HostDevice
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operations import KernelOperations
from dgemma.engine.torch_engine import TorchEngine
from dgemma.precision import policy_of
from tests.dgemma_build.quantized import whole_groups

GEOMETRY = whole_groups()
KERNELS = KernelOperations(Chip.of(90))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
def test_every_operation_of_every_kind_of_pass_is_right(precision: str) -> None:
    weights = random_weights(GEOMETRY, policy_of(precision), HostDevice())
    found = list(agreement(weights, HostDevice(), KERNELS, lambda kind: None))
    assert {p.kind: p.max_error for p in found if not p.passed} == {}
    assert {"attend", "keep", "route", "gate_up", "down", "entered"} <= {p.kind for p in found}
    # Two ways to add up are not the same bits, or one of them was not asked.
    assert {"attend", "rotary_table"} <= {p.kind for p in found if p.max_error > 0}


@dataclass(frozen=True)
class Wrong:
    """Plain torch, but for one operation."""

    name: str

    def __getattr__(self, name: str) -> Any:
        right = getattr(reference, name)
        if name != self.name:
            return right

        def wrong(*args: Any, **kwargs: Any) -> Any:
            if name == "keep":  # forgets the values
                k, _, pool_k, pool_v, *rest = args
                return right(k, torch.zeros_like(k), pool_k, pool_v, *rest, **kwargs)
            return 1.05 * right(*args, **kwargs)

        return wrong


@pytest.mark.parametrize("name", ["down", "keep", "linear"])
def test_the_operation_that_is_wrong_is_named(name: str) -> None:
    weights = random_weights(GEOMETRY, policy_of("bf16"), HostDevice())
    found = agreement(weights, HostDevice(), Wrong(name), lambda kind: None)
    assert [p.kind for p in found if not p.passed] == [name]


def test_hidden_states_of_kernels_are_those_of_plain_torch() -> None:
    device, capacity = HostDevice(), Capacity(slots=2, context=64, rows=4)
    weights = random_weights(GEOMETRY, policy_of("bf16"), device)
    ours, plain = (
        TorchEngine(weights, capacity, device, captured=False, operations=operations)
        for operations in (KERNELS, reference)
    )
    for each in passes(GEOMETRY, capacity):
        found, wanted = ours.forward(each.rows).float(), plain.forward(each.rows).float()
        for index, row in enumerate(each.rows):
            error = (found[index] - wanted[index])[: row.valid].abs().median()
            assert error < 2e-2 * wanted[index].abs().mean()
