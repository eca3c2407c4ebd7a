"""The benchmark of the torch engine: one precision after another, on random weights.

Knows the order of what is measured and what goes into a report; knows nothing of how a pass is
computed. Needs no checkpoint: the geometry is enough.
"""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from dgemma.assemble import tail_of
from dgemma.bench.agreement import agreement
from dgemma.bench.parts import WatchedOperations
from dgemma.bench.peer import time_peer
from dgemma.bench.random_weights import random_weights
from dgemma.bench.report import (
    Ceilings,
    Check,
    Device,
    EngineFacts,
    Memory,
    Peer,
    Report,
    Software,
)
from dgemma.bench.stand import Plan, Timed, TorchStand
from dgemma.engine.base import Capacity
from dgemma.engine.device import Device as Where
from dgemma.engine.torch_engine import TorchEngine, operations_of
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.precision import policy_of
from dgemma.roofline.sizes import Model

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is measured: the network of a `config.json`, in one precision."""

    config: Path  # its directory
    geometry: Geometry
    precision: str
    peer_steps: int = 0  # denoise steps of Hugging Face's run; 0: it is left out


def measure(
    subject: Subject, plan: Plan, where: Where, ceilings: Ceilings, progress: Progress
) -> Report:
    """Everything about one precision. The device's memory is free again afterwards."""
    geometry, precision = subject.geometry, subject.precision
    policy = policy_of(precision)
    length = geometry.canvas_length
    slots = max(plan.rows)
    context = max(plan.contexts) + 2 * length
    _forget(where.where)
    progress(f"{precision}: weights")
    weights = random_weights(geometry, policy, where)
    operations = operations_of(where)
    parity = tuple(agreement(weights, where, operations, progress))
    progress(f"{precision}: graphs")
    engine = TorchEngine(
        weights,
        Capacity(slots, context, 2 * slots),
        where,
        operations=operations,
        progress=lambda what, done, total: progress(f"{precision}: {what} {done} of {total}"),
    )
    model = replace(Model.of(geometry, precision, flavour="torch"), policy=policy)
    stand = TorchStand(engine, tail_of(engine.embedding(), geometry), model, plan)
    found: list[Timed] = []
    for timed in stand.timed():
        found.append(timed)
        progress(f"{precision}: {timed.rows} rows, {timed.context} tokens: {timed.denoise:.2f} ms")
    parts = stand.parts(plan.contexts[0], WatchedOperations(operations, where.where))
    memory = Memory(
        peak_bytes=_peak(where.where),
        weights_bytes=model.weight_bytes,
        estimated_bytes=model.weight_bytes + sum(pool.nbytes for pool in engine.pools),
    )
    peer: Peer | None = None
    if subject.peer_steps:
        progress("Hugging Face")
        peer = time_peer(subject.config, weights, where.where, subject.peer_steps)
    return Report(
        day=date.today(),
        executed=True,
        passed=all(p.passed for p in parity),
        engine=EngineFacts(
            target="gpu",
            precision=precision,
            layers=len(geometry.layers),
            hidden_size=geometry.hidden_size,
            num_experts=geometry.num_experts,
            graph_sha256="",
            built_with=f"torch {torch.__version__}",
        ),
        software=_software(),
        device=_device(where.where),
        checks=(Check(name="weights", outcome="skipped", detail="random: answers mean nothing"),),
        parity=parity,
        speed=tuple(stand.speed(timed) for timed in found),
        ceilings=ceilings,
        parts=tuple(parts),
        throughput=tuple(
            amount
            for timed in found
            for steps in plan.steps
            for amount in timed.throughput(length, steps)
        ),
        memory=memory,
        peer=peer,
    )


def _software() -> Software:
    gpu = Machine.here().gpu
    return Software(
        dgemma=importlib.metadata.version("dgemma"),
        torch=torch.__version__,
        runtime="torch",
        runtime_version=torch.__version__,
        driver=None if gpu is None else gpu.driver,
    )


def _device(where: torch.device) -> Device:
    if where.type != "cuda":
        return Device(name="host", compute_capability=None, memory_bytes=0, cores=1)
    found = torch.cuda.get_device_properties(where)
    return Device(
        name=found.name,
        compute_capability=10 * found.major + found.minor,
        memory_bytes=found.total_memory,
        cores=None,
    )


def _forget(where: torch.device) -> None:
    """What was measured before is no part of the peak."""
    gc.collect()
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)


def _peak(where: torch.device) -> int:
    return int(torch.cuda.max_memory_reserved(where)) if where.type == "cuda" else 0
