"""Directories of runs for tests of what is made of them: a sweep, and tenants that compete.

Times are those of the model, so that figures are as plausible as a real run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgemma_loadtest import run_file
from dgemma_loadtest.modelled import steps
from dgemma_loadtest.modelled.engine import Engine, Loop, Policy
from dgemma_loadtest.modelled.roofline import Machine
from dgemma_loadtest.platforms import Kind
from dgemma_loadtest.recording import FILE, to_line
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Client, Host, Run, Server, StageWindow

SWEEP = (1, 2, 4, 8, 16, 32, 64)
MACHINE = "h100-fp8"
VICTIM = {"tenant": "steady", "alone": "alone", "beside": "beside"}
Stage = tuple[list[Record], StageWindow]


def sweep(directory: Path, kind: Kind = "diffusion", seed: int = 0, **changes: Any) -> Path:
    """One stage for each number of users."""
    stages = [
        engine(kind, [Loop("default", users)], seed=seed).run(max(60, 6 * users), label(users))
        for users in SWEEP
    ]
    return write(directory, stages, {"name": "concurrency-sweep", "stages": []}, **changes)


def label(users: int) -> str:
    return f"{users} user{'s' * (users > 1)}"


def tenants(directory: Path, policy: Policy = "fair", **changes: Any) -> Path:
    """A steady tenant alone, then beside one that floods."""
    steady, flood = Loop("steady", 12), Loop("flood", 40)
    stages = [
        engine("diffusion", loops, policy).run(240, name)
        for name, loops in (("alone", [steady]), ("beside", [steady, flood]))
    ]
    scenario = {"name": "multi-tenant", "stages": [], "slots": 8, "victim": VICTIM}
    return write(directory, stages, scenario, **changes)


def engine(
    kind: Kind, loops: Sequence[Loop], policy: Policy = "fair", seed: int = 0, slots: int = 8
) -> Engine:
    slots = (
        max(slots, loops[0].users) if len(loops) == 1 and loops[0].tenant == "default" else slots
    )
    return Engine(Machine.named(MACHINE), kind, slots, steps.published(), loops, policy, seed)


def write(
    directory: Path, stages: Sequence[Stage], scenario: Mapping[str, Any], /, **changes: Any
) -> Path:
    """Stages one after the other, as a run writes them."""
    directory.mkdir(parents=True, exist_ok=True)
    begins, lines, windows = 0.0, [], []
    for records, window in stages:
        lines += [to_line(_later(record, begins)) for record in records]
        windows.append(
            replace(
                window,
                begins_s=begins,
                measured_from_s=window.measured_from_s + begins,
                arrivals_end_s=window.arrivals_end_s + begins,
                ended_s=window.ended_s + begins,
            )
        )
        begins = windows[-1].ended_s
    (directory / FILE).write_bytes(b"".join(lines))
    run = Run(
        target="grpc://127.0.0.1:8001",
        scenario=dict(scenario),
        seed=7,
        started_at="2026-01-31T12:00:00+00:00",
        epoch_unix=1769860800.0,
        host=Host("Linux", "x86_64", 2, "3.11.9"),
        server=Server(
            "triton",
            "triton",
            "2.51.0",
            profile=MACHINE,
            precision="fp8",
            simulated=MACHINE,
            canvas=256,
        ),
        state="complete",
        stages=tuple(windows),
        client=Client(0.31, 0.55, 0.0002, 0.0011, 0.0042),
        slo={"ttfb": 0.5, "e2e": 5.0},
    )
    run_file.write(replace(run, **changes), directory)
    return directory


def _later(record: Record, by_s: float) -> Record:
    return replace(
        record,
        scheduled_s=record.scheduled_s + by_s,
        started_s=None if record.started_s is None else record.started_s + by_s,
        ended_s=record.ended_s + by_s,
        chunks=tuple(chunk._replace(at_s=chunk.at_s + by_s) for chunk in record.chunks),
    )
