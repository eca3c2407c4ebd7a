"""What whole passes of the 26B network launch is what is compiled ahead of time; nothing runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.compiled import MODULES, all_variants
from dgemma.engine.kernels.operations import KernelOperations
from dgemma.engine.kernels.variant import Variant
from dgemma.engine.torch_engine import Bucket, TorchEngine
from dgemma.engine.torch_weights import WeightReader, arena_of
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.precision import policy_of
from tests.dgemma.engine.kernels.launches import Launch, recording

GEOMETRY = named_geometry(DEFAULT)
CHIP = Chip.of(90)
ROWS, CONTEXTS = (1, 2, 4, 8, 16, 32), (256, 32768)
# Every format of every kind of weight.
SERVED = [
    *(("bf16", None), ("fp8", None), ("int4", None), ("nvfp4", None)),
    *(("fp8", "feed_forward"), ("fp8", "experts"), ("int4", "all"), ("nvfp4", "all")),
]


class Nowhere:
    """A device whose memory has shapes and no bytes."""

    where = torch.device("meta")
    stream = 0

    def allocate(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="meta")

    def staging(self, nbytes: int) -> Tensor:
        return self.allocate(nbytes)

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        return call

    def wait(self) -> None:
        pass

    def free_bytes(self) -> int:
        return 2**50


@dataclass
class Recorded:
    """All kernels of the package, none of which runs; and what is compiled of them."""

    launches: list[Launch] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    kernels = {id(v.kernel): v.kernel for v in all_variants(GEOMETRY, CHIP)}
    in_place = {key: recording(kernel, found.launches) for key, kernel in kernels.items()}
    package = MODULES[0].__package__
    for name, module in list(sys.modules.items()):
        if package is not None and name.startswith(f"{package}."):
            for attribute, value in list(vars(module).items()):
                if id(value) in in_place:
                    monkeypatch.setattr(module, attribute, in_place[id(value)])
    found.variants = list(all_variants(GEOMETRY, CHIP))
    return found


def run(precision: str, policy: str | None) -> None:
    """A pass of every number of rows behind short and long contexts."""
    rules, device = policy_of(precision, policy), Nowhere()
    arena = arena_of(GEOMETRY, rules)
    weights = WeightReader(GEOMETRY, rules, arena, device.allocate(arena.nbytes))
    operations: Any = KernelOperations(CHIP)
    engine = TorchEngine(
        weights, Capacity(16, 32768, 32), device, captured=False, operations=operations
    )
    for rows in ROWS:
        for context in CONTEXTS:
            engine._run(Bucket(rows, context))


def test_whatever_a_pass_launches_is_compiled_ahead_of_time(recorded: Recorded) -> None:
    used: set[str] = set()
    for precision, policy in SERVED:
        recorded.launches.clear()
        run(precision, policy)
        assert len(recorded.launches) > 12 * 10 * len(GEOMETRY.layers)
        for launch in recorded.launches:
            names = [v.name for v in recorded.variants if launch.is_of(v)]
            assert len(names) == 1, (names, launch)
            used.add(names[0])
    # And nothing is compiled that no pass launches; the tail has tests of its own.
    others = {v.name for v in recorded.variants if not v.name.startswith("tail.")}
    assert others - used == set()
