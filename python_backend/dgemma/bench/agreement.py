"""Kernels against plain torch on the same weights and device: whether what is timed is right.

Knows how to ask two sets of operations the same thing in the middle of a pass; knows nothing of
what they compute. Each operation gets inputs that kernels gave, so errors do not add up from layer
to layer, and a wrong one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dgemma.bench.passes import passes
from dgemma.bench.report import Parity
from dgemma.engine import reference
from dgemma.engine.base import Capacity
from dgemma.engine.device import Device
from dgemma.engine.kernels.operands import Lines
from dgemma.engine.kernels.routed import Routed
from dgemma.engine.kernels.rows import PassRows
from dgemma.engine.operations import Operations
from dgemma.engine.torch_engine import TorchEngine
from dgemma.engine.torch_weights import WeightReader

# Of the norm of the difference over that of what is wanted. Codes of e4m3 stand a sixteenth apart,
# and a value between two of them may fall to either.
LIMIT, LIMIT_E4M3 = 1e-2, 2e-2
CONTEXT = 2048  # tokens of a slot, where the model has as many


@dataclass
class ComparedOperations:
    """Operations that are asked, and others that are asked the same; the first are believed."""

    ours: Operations
    plain: Operations
    errors: dict[str, float] = field(default_factory=dict)  # the worst of each operation
    rounded: set[str] = field(default_factory=set)  # those that gave e4m3

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def compared(*args: Any, **kwargs: Any) -> Any:
            copies = [a.clone() if name == "keep" and isinstance(a, Tensor) else a for a in args]
            wanted = getattr(self.plain, name)(*copies, **kwargs)
            found = getattr(self.ours, name)(*args, **kwargs)
            if name == "keep":  # it writes to the pools it is given
                pairs = list(zip(args[2:4], copies[2:4], strict=True))
            else:
                rows = next((a for a in args if isinstance(a, PassRows)), None)
                pairs = list(zip(_tensors(found, rows), _tensors(wanted, rows), strict=True))
            if isinstance(found, Lines) and found.scale is not None:
                self.rounded.add(name)
            worst = max(map(_error, *zip(*pairs, strict=True)))
            self.errors[name] = max(self.errors.get(name, 0.0), worst)
            return found

        return compared


def agreement(
    weights: WeightReader,
    device: Device,
    ours: Operations,
    progress: Callable[[str], None],
    context: int = CONTEXT,
) -> Iterator[Parity]:
    """Every operation, over every kind of pass of two slots."""
    most = weights.geometry.max_position_embeddings
    capacity = Capacity(slots=2, context=min(context, most), rows=4)
    compared = ComparedOperations(ours, reference)
    engine = TorchEngine(weights, capacity, device, captured=False, operations=compared)
    longest = 0
    for each in passes(weights.geometry, capacity):
        progress(f"right? {each.kind}")
        longest = max(longest, each.context)
        with device.where:  # plain torch makes its indices where it computes
            engine.forward(each.rows)
    for name, error in compared.errors.items():
        limit = LIMIT_E4M3 if name in compared.rounded else LIMIT
        yield Parity(
            kind=name,
            rows=capacity.rows,
            context=longest,
            max_error=error,
            typical_error=error,
            limit=limit,
            exact=False,
            passed=error <= limit,
        )


def _tensors(result: Any, rows: PassRows | None) -> Iterator[Tensor]:
    """All numbers of a result that mean anything."""
    if isinstance(result, Lines):
        values = result.values.float()
        values = values if result.scale is None else values * result.scale[:, None]
        if rows is not None:  # what tokens beyond `valid` attend to is nobody's business
            own = torch.arange(rows.length, device=values.device)
            values = values[(own < rows.valid[:, None]).flatten()]
        yield values
    elif isinstance(result, Routed):
        dense = result.weights.new_zeros(len(result.weights), len(result.offsets) - 1)
        yield dense.scatter(1, result.experts.long(), result.weights)
        yield result.order
    elif isinstance(result, tuple):
        for part in result:
            yield from _tensors(part, rows)
    elif result is not None:
        yield result


def _error(found: Tensor, wanted: Tensor) -> float:
    """Infinite for what is no number."""
    apart = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)
    return float(apart) if found.isfinite().all() else 1e9
