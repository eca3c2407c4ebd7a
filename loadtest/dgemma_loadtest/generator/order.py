"""What a generator's process is told and what it tells, as lines of JSON.

In: one Order, then commands. Out: events. Keys of tenants come this way because arguments of a
process can be read by everybody.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

STOP = "stop"  # the command that ends a run at once


@dataclass(frozen=True)
class Order:
    """`commanded`: users are started and stopped by commands, and records go out as events."""

    scenario: dict[str, Any]
    target: str
    seed: int = 0
    out: str | None = None  # a directory for records.jsonl and run.json; None: nothing is written
    tenant_targets: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # by tenant
    model: str | None = None
    ca: str | None = None
    prompts: str | None = None
    fit: str = "auto"  # auto, off, or as `fit.parse` takes it
    slo: dict[str, float] = field(default_factory=dict)
    epoch_unix: float | None = None
    commanded: bool = False


@dataclass(frozen=True)
class Command:
    """To a generator that is commanded.

    start, stop: a user of the load of that label in the scenario's stage of that name. stage:
    requests that are due from now on belong to `stage`, and count from `warmup_s` on, or where
    that is None from the command measure on. end: no more requests.
    """

    do: Literal["start", "stop", "stage", "measure", "end"]
    user: int = 0
    load: str = ""
    stage: str = ""
    warmup_s: float | None = 0.0


ORDER = TypeAdapter(Order)
COMMAND = TypeAdapter(Command)


def event(kind: str, **content: Any) -> bytes:
    return json.dumps({"event": kind, **content}).encode() + b"\n"
