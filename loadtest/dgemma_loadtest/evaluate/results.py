"""Figures of platforms as a file that is made to be shared, and merged with others'.

Knows the schema, which `docs/measurements/load/` documents; knows nothing of how figures are got.
No path, host name, user name or serial number belongs in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dgemma_loadtest import __version__
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.platforms import Kind

SCHEMA = 1
FILE = "results.json"
SCHEMA_FILE = f"schema-{SCHEMA}.json"
Basis = Literal["measured", "simulated", "published"]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(_Part):
    """What computed, as the server tells it; null where it does not."""

    name: str | None = None
    driver: str | None = None
    engine_hash: str | None = Field(default=None, description="of the plan that ran")


class Figures(_Part):
    """Null where there is none; `a user` is the median over answers."""

    tokens_per_s: Number | None = Field(default=None, description="useful, of all users together")
    tokens_per_s_user: Number | None = None
    ttfb_p50_s: Number | None = Field(
        default=None, description="from due to the first block, or token"
    )
    ttfb_p99_s: Number | None = None
    block_p50_s: Number | None = None
    e2e_p50_s: Number | None = None
    e2e_p99_s: Number | None = None
    waste: Number | None = Field(
        default=None, description="share of committed tokens that nobody got"
    )
    steps: Number | None = Field(default=None, description="of a block, in the mean")
    usd_per_million: Number | None = Field(
        default=None, description="useful tokens, the machine's hours"
    )
    kwh_per_million: Number | None = Field(
        default=None, description="useful tokens, at the board's limit"
    )
    jain: Number | None = Field(default=None, description="of service by weight while all waited")
    service_gap: Number | None = Field(default=None, description="rows by weight")
    service_gap_bound: Number | None = None
    victim_p99_ratio: Number | None = Field(
        default=None, description="beside an aggressor, over alone"
    )
    longest_wait_s: Number | None = None


class Cell(_Part):
    """One line: a platform under one load."""

    platform: str
    precision: str | None = Field(default=None, description="null: the source leaves it open")
    model: Kind
    tenancy: Literal["single", "multi"]
    users: Annotated[int, Field(ge=1)] = Field(description="requests at once")
    basis: Basis
    how: str = Field(description="service; service with the simulated engine; virtual time; source")
    reading: Literal["sum", "max"] | None = Field(
        default=None, description="of the model, if simulated"
    )
    steps: str | None = Field(default=None, description="which distribution; null: not told")
    policy: Literal["fair", "fcfs"] | None = None
    hardware: Hardware = Hardware()
    spoiled: bool = Field(default=False, description="the load generator was too slow")
    figures: Figures


class Crossover(_Part):
    """From how many requests at once autoregressive decoding gives more tokens per second."""

    platform: str
    precision: str
    basis: Basis
    how: str
    reading: Literal["sum", "max"] | None = None
    steps: str
    users: Number | None = Field(
        default=None, description="null: not up to the most that was looked at"
    )
    low: Number | None = Field(default=None, description="95 %, from the sample of steps")
    high: Number | None = None


class Results(_Part):
    """One evaluation."""

    schema_version: Literal[1] = 1
    day: date
    tool: str = f"dgemma-loadtest {__version__}"
    workload: str
    cells: tuple[Cell, ...]
    crossovers: tuple[Crossover, ...] = ()

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1, exclude_none=True) + "\n")


def read(path: Path) -> Results:
    """InputError naming the field where a file holds no results of this schema."""
    path = path / FILE if path.is_dir() else path
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"from: {path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise InputError(
            f"from: {path}: {place}: {first['msg']}; it is what `dgemma-loadtest evaluate` writes"
        ) from None


def merge(several: Sequence[Results]) -> Results:
    """All cells, none twice; the latest day."""
    cells = dict.fromkeys(cell for one in several for cell in one.cells)
    crossovers = dict.fromkeys(found for one in several for found in one.crossovers)
    loads = dict.fromkeys(one.workload for one in several)
    return Results(
        day=max(one.day for one in several),
        workload="; ".join(loads),
        cells=tuple(cells),
        crossovers=tuple(crossovers),
    )


def json_schema() -> str:
    """The text of `docs/measurements/load/schema-1.json`."""
    schema: dict[str, Any] = Results.model_json_schema()
    return json.dumps(schema, indent=1) + "\n"
