"""Targets as data: what engines are compiled for, one TOML file each, named as the target.

Knows the schema and where the files are; knows neither how an engine is built nor what fits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dgemma.errors import ConfigurationError

Flavour = Literal["onnxruntime", "tensorrt_rtx", "tensorrt", "torch"]
Precision = Literal["fp32", "bf16", "fp8", "int4", "nvfp4"]
Positive = Annotated[int, Field(gt=0)]
_SHIPPED = Path(__file__).parent
KERNELS: tuple[Precision, ...] = ("bf16", "fp8", "int4", "nvfp4")  # that kernels multiply


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Published(_Entry):
    """A speed that somebody else published for other software; none of them is ours."""

    system: str
    source: str
    tokens_per_s: Annotated[float, Field(gt=0)]
    precision: Precision
    precision_stated: bool = True  # False: the source leaves it open
    steps: Positive | None = None  # denoise steps per canvas; None: the source leaves it open
    requests: Positive = 1  # that ran at the same time, tokens_per_s being their sum


class Gpu(_Entry):
    """One product. Bytes are bytes: 80 GB on a box are 85_520_809_984 to the driver."""

    name: str
    memory_bytes: Positive
    unified: bool = False  # shared with the host, which then needs head-room
    head_room_bytes: Annotated[int, Field(ge=0)] = 0
    bandwidth_bytes_per_s: Positive | None = None
    # Dense products, summed up in fp32. What is stored in four bits is multiplied in BF16.
    bf16_flops_per_s: Positive | None = None
    fp8_flops_per_s: Positive | None = None
    platform: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] | None = None  # to simulate it
    board_power_w: Positive | None = None
    published: tuple[Published, ...] = ()

    @property
    def usable_bytes(self) -> int:
        return self.memory_bytes - self.head_room_bytes

    @model_validator(mode="after")
    def _head_room_is_within_memory(self) -> Gpu:
        if self.usable_bytes <= 0:
            raise ValueError("head_room_bytes must be below memory_bytes")
        return self

    @model_validator(mode="after")
    def _platform_has_a_roofline(self) -> Gpu:
        if self.platform and not (self.bandwidth_bytes_per_s and self.bf16_flops_per_s):
            raise ValueError("platform needs bandwidth_bytes_per_s and bf16_flops_per_s")
        return self


class Target(_Entry):
    """One entry: what to compile for, with what, and the products it serves."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    flavour: Flavour
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")] | None = None
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    max_rows: Annotated[int, Field(ge=2)]  # of an engine's pass, two for each slot
    max_context: Positive  # tokens of a slot that an engine is built for by default
    gpus: tuple[Gpu, ...] = ()

    @property
    def on_gpu(self) -> bool:
        return self.flavour != "onnxruntime"

    @property
    def has_plan(self) -> bool:
        """Whether a compiler makes its engines, for the sizes that it is told."""
        return self.flavour in ("tensorrt_rtx", "tensorrt")

    @model_validator(mode="after")
    def _gpus_have_a_capability(self) -> Target:
        if self.has_plan and not (self.compute_capability and self.gpus):
            raise ValueError(f"{self.flavour} needs a compute_capability and at least one of gpus")
        return self

    @model_validator(mode="after")
    def _kernels_are_for_any_gpu(self) -> Target:
        if self.flavour != "torch":
            return self
        if self.compute_capability or self.gpus:
            raise ValueError("torch serves any GPU; leave out compute_capability and gpus")
        if others := set(self.precisions) - set(KERNELS):
            raise ValueError(
                f"torch has kernels for {', '.join(KERNELS)}, not for {', '.join(sorted(others))}"
            )
        return self


def load_targets(extra: Path | None = None) -> dict[str, Target]:
    """Every shipped target by name, and those of a directory `extra`, which replace namesakes.

    Raises ConfigurationError naming file and field of an entry that is wrong.
    """
    found = _read_directory(_SHIPPED)
    if extra is not None:
        if not extra.is_dir():
            raise ConfigurationError(f"{extra}: no such directory of target files, *.toml")
        found |= _read_directory(extra)
    return dict(sorted(found.items(), key=lambda item: _order(item[1])))


def select(targets: dict[str, Target], name: str) -> Target:
    """ConfigurationError lists the names where there is no such target."""
    if name not in targets:
        raise ConfigurationError(
            f"target {name!r} is not known; known: {', '.join(targets)}; "
            "a file NAME.toml in the directory that --targets names adds one"
        )
    return targets[name]


def _order(target: Target) -> tuple[float, str]:
    return float(target.compute_capability or 0), target.name


def _read_directory(directory: Path) -> dict[str, Target]:
    return {path.stem: _read(path) for path in sorted(directory.glob("*.toml"))}


def _read(path: Path) -> Target:
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from None
    if "name" in data:
        raise ConfigurationError(f"{path}: name: the file's name is the target's; leave it out")
    try:
        return Target.model_validate(_tuples({**data, "name": path.stem}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "entry"
        raise ConfigurationError(f"{path}: {place}: {_reason(first)}") from None


def _tuples(value: object) -> object:
    """TOML has lists where the frozen entries have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _reason(error: Mapping[str, object]) -> str:
    """pydantic's sentence with what was found, where that helps."""
    if error["type"] == "extra_forbidden":
        return "no such field; check its spelling"
    if error["type"] == "missing":
        return "is missing"
    found = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{error['msg']}{found}"
