"""What a run was: `run.json` beside its records.

Knows which scenario ran when, where and against what; knows nothing of single requests.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from dgemma_loadtest import __version__
from dgemma_loadtest.errors import InputError

SCHEMA = 1
FILE = "run.json"


@dataclass(frozen=True)
class Host:
    """The machine that the load came from; no name, address or user."""

    system: str
    machine: str
    cpus: int
    python: str

    @classmethod
    def here(cls) -> Host:
        cpus = len(os.sched_getaffinity(0))
        return cls(platform.system(), platform.machine(), cpus, platform.python_version())


@dataclass(frozen=True)
class Server:
    """What the server says about itself; None where it does not say."""

    kind: Literal["triton", "openai"]
    name: str | None = None
    version: str | None = None
    model: str | None = None
    profile: str | None = None
    target: str | None = None
    precision: str | None = None
    simulated: str | None = None  # the platform whose time is imitated; "false": a real engine
    max_context: int | None = None  # tokens of prompt and answer
    canvas: int | None = None  # tokens of a block
    more: dict[str, Any] = field(default_factory=dict)  # its answers as they came


@dataclass(frozen=True)
class StageWindow:
    """When a stage ran: requests that were due in [measured_from_s, arrivals_end_s) count."""

    name: str
    begins_s: float
    measured_from_s: float
    arrivals_end_s: float
    ended_s: float  # when its last request had ended or was cut off
    ended_by: Literal["time", "requests", "knee", "interrupt"] = "time"
    offered: dict[str, float] = field(default_factory=dict)  # users, or requests/s, of each load


@dataclass(frozen=True)
class Client:
    """What generating the load cost; percentiles are nearest ranks, times in seconds."""

    cpu_share: float  # of one core, over the run
    cpu_share_max: float  # of the busiest second
    loop_lag_p50_s: float  # how late a timer of the event loop came
    loop_lag_p99_s: float
    loop_lag_max_s: float


@dataclass(frozen=True)
class Run:
    """One run; `stages` grows while it goes on."""

    target: str
    scenario: dict[str, Any]  # as it was run: after sweeps, fitting and options
    seed: int
    started_at: str  # ISO 8601, UTC
    epoch_unix: float  # what the times of records count from
    host: Host
    server: Server
    state: Literal["running", "complete", "interrupted", "failed"] = "running"
    why: str | None = None  # of one that failed
    generator: Literal["asyncio", "locust"] = "asyncio"
    stages: tuple[StageWindow, ...] = ()
    client: Client | None = None
    slo: dict[str, float] = field(default_factory=dict)  # seconds
    fit: dict[str, Any] = field(default_factory=dict)  # what lengths were fitted to
    notes: tuple[str, ...] = ()
    version: str = __version__
    numpy: str = np.__version__
    schema_version: int = SCHEMA


_RUN = TypeAdapter(Run)


def write(run: Run, directory: Path) -> None:
    """Replaces the file at once: a reader sees the old or the new one."""
    scratch = directory / f".{FILE}"
    scratch.write_bytes(_RUN.dump_json(run, indent=2) + b"\n")
    scratch.replace(directory / FILE)


def read(directory: Path) -> Run:
    """Raises InputError where there is no run, or one of another schema."""
    path = directory / FILE
    try:
        run = _RUN.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a run's directory"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']}; was it edited?") from None
    if run.schema_version != SCHEMA:
        raise InputError(
            f"{path}: schema_version: got {run.schema_version}, this version reads {SCHEMA}"
        )
    return run
