"""Records and loads by hand, with what a test says of them and defaults for the rest."""

from __future__ import annotations

from typing import Any

from dgemma_loadtest.records import Chunk, Outcome, Record, Usage
from dgemma_loadtest.run_file import Host, Run, Server
from dgemma_loadtest.scenario import Scenario, parse


def record(due: float = 0.0, *chunks_at: float, took: float | None = None, **more: Any) -> Record:
    """Due and started at `due`, a block at each of `chunks_at` (seconds from then), over with the
    last of them, or after `took`.
    """
    ends = due + (took if took is not None else max(chunks_at, default=0.0))
    fields: dict[str, Any] = {
        "id": f"r{due}",
        "stage": "stage",
        "load": "load",
        "tenant": "tenant",
        "user": 0,
        "prompt_class": "code",
        "prompt": "one",
        "task": "generate",
        "scheduled_s": due,
        "started_s": due,
        "ended_s": ends,
        "outcome": Outcome.OK,
        "chunks": tuple(
            Chunk(due + at, "block", 40, number, 10) for number, at in enumerate(chunks_at)
        ),
    }
    return Record(**(fields | more))


def usage(*steps: int, queue_s: float | None = None, **more: Any) -> Usage:
    """64 tokens a block committed, 40 useful, one prefill pass."""
    count = len(steps)
    fields: dict[str, Any] = {
        "prompt_tokens": 10,
        "useful_tokens": 40 * count,
        "committed_tokens": 64 * count,
        "steps": steps,
        "cap_hits": 0,
        "passes": sum(steps) + 1,
        "service_units": sum(steps) + count,
        "queue_s": queue_s,
    }
    return Usage(**(fields | more))


def run_of(**more: Any) -> Run:
    fields: dict[str, Any] = {
        "target": "grpc://localhost:1",
        "scenario": {"name": "hand-made"},
        "seed": 1,
        "started_at": "2026-01-31T00:00:00.000+00:00",
        "epoch_unix": 0.0,
        "host": Host("Linux", "x86_64", 2, "3.11"),
        "server": Server("triton"),
    }
    return Run(**(fields | more))


def scenario_of(*loads: dict[str, Any], **stage: Any) -> Scenario:
    """One stage of these loads."""
    fields = {"name": "stage", "duration_s": 0.4, **stage, "loads": list(loads)}
    return parse({"schema": 1, "name": "hand-made", "stages": [fields]})
