"""What a verification found, as a file that is made to be shared.

Knows the schema, which `docs/measurements/` documents; knows nothing of how anything is measured.
No path, host name, user name or serial number of a device belongs in it.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dgemma.errors import ConfigurationError

SCHEMA_VERSION = 1
SCHEMA_FILE = f"schema-{SCHEMA_VERSION}.json"

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Outcome = Literal["passed", "failed", "skipped"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Part):
    """One thing that was looked at."""

    name: str = Field(description="what was looked at")
    outcome: Outcome = Field(description="skipped: it cannot be told here, for the reason given")
    detail: str = Field(description="what was found, or the reason")


class Software(_Part):
    """Versions."""

    dgemma: str
    torch: str
    runtime: str = Field(description="onnxruntime, tensorrt_rtx, tensorrt or torch")
    runtime_version: str | None = Field(description="of the runtime here; null: it does not import")
    driver: str | None = Field(description="of the GPU; null without one")


class Device(_Part):
    """What computed."""

    name: str = Field(description="as its driver or operating system calls it")
    compute_capability: int | None = Field(description="121 for 12.1; null for a CPU")
    memory_bytes: Count
    cores: Count | None = Field(description="of a CPU that this process may use; null for a GPU")


class EngineFacts(_Part):
    """What was verified."""

    target: str
    precision: str
    layers: Count
    hidden_size: Count
    num_experts: Count
    graph_sha256: str = Field(
        description="of the plan or graph, or of the sources of the kernels; it names it"
    )
    built_with: str = Field(description="runtime and version that the engine was built for")


class Parity(_Part):
    """Hidden states of one kind of pass against the torch modules with the stored weights."""

    kind: str = Field(description="prefill, long context, denoise, commit with denoise, …")
    rows: Count
    context: Count = Field(description="longest context of a row, tokens")
    max_error: Number = Field(description="largest absolute difference of an element")
    typical_error: Number = Field(
        description="of the worst row, the median absolute difference over the mean magnitude"
    )
    limit: Number = Field(description="for max_error where exact, else for typical_error")
    exact: bool = Field(description="whether engine and reference do the same arithmetic")
    passed: bool


class Speed(_Part):
    """Medians of one shape of pass."""

    rows: Count
    context: Count
    runs: Count
    engine_ms: Number = Field(description="the network alone")
    pass_ms: Number = Field(description="the network and a denoise step of the tail")
    floor_ms: Number | None = Field(description="bytes over bandwidth; null: bandwidth unknown")
    read_bytes: Count | None = Field(default=None, description="that the pass must read at least")
    operations: Number | None = Field(default=None, description="floating-point, of the pass")


class Ceilings(_Part):
    """What the device did at best in the same run."""

    bandwidth_bytes_per_s: Number = Field(description="of a copy, bytes read plus written")
    bf16_flops_per_s: Number = Field(description="of a product of large random matrices")
    fp8_flops_per_s: Number | None = Field(description="null: torch has no such product here")


class Part(_Part):
    """A part of a pass, over all layers."""

    name: str
    calls: Count
    ms: Number


class Throughput(_Part):
    """Tokens per second that measured passes amount to."""

    rows: Count = Field(description="canvases at once")
    context: Count
    steps: Count = Field(description="denoise steps of each canvas")
    fused: bool = Field(description="a commit shares the pass of the next canvas's first step")
    tokens_per_s: Number


class Peer(_Part):
    """Another implementation, on the same weights and the same device in the same run."""

    system: str
    version: str
    outcome: Outcome
    detail: str
    steps: Count = 0
    ms_per_step: Number | None = None
    tokens_per_s: Number | None = None


class Memory(_Part):
    """Of the whole process, or of the device where it has memory of its own."""

    peak_bytes: Count
    weights_bytes: Count
    estimated_bytes: Count = Field(description="what `dgemma-build estimate` counts for this")


class HuggingFace(_Part):
    """Agreement with Hugging Face's implementation on prompts: the next canvas's first step."""

    prompts: Count
    positions: Count
    same_argmax: Number = Field(
        le=1, description="share of positions with the same likeliest token"
    )
    outcome: Outcome
    detail: str


class Report(_Part):
    """One run of `dgemma-build verify`, or of a benchmark."""

    schema_version: Literal[1] = 1
    day: date
    executed: bool = Field(description="whether passes were run on the device: --device")
    passed: bool
    engine: EngineFacts
    software: Software
    device: Device
    checks: tuple[Check, ...]
    parity: tuple[Parity, ...] = ()
    speed: tuple[Speed, ...] = ()
    ceilings: Ceilings | None = None
    parts: tuple[Part, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    peer: Peer | None = None
    memory: Memory | None = None
    hugging_face: HuggingFace | None = None

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n")


def read_report(path: Path) -> Report:
    """ConfigurationError naming the field where a file is no report of this schema."""
    try:
        return Report.model_validate_json(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigurationError(
            f"{path}: {place}: {first['msg']}; it is what `dgemma-build verify --json` writes"
        ) from None


def json_schema() -> str:
    """The text of `docs/measurements/schema-1.json`."""
    schema: dict[str, Any] = Report.model_json_schema()
    return json.dumps(schema, indent=1) + "\n"
