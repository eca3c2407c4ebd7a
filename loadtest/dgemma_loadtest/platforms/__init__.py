"""Platforms as data, one TOML file each: what a machine can move and multiply, costs and draws.

Knows the schema and where the files are; nothing here was measured by us.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dgemma_loadtest.errors import InputError

Precision = Literal["bf16", "fp8", "int4", "nvfp4"]
Kind = Literal["diffusion", "autoregressive"]
Positive = Annotated[float, Field(gt=0)]
YEARS, HOURS = 3, 8760
KWH_USD = 0.15  # an assumption, of machines that are bought; a rented one's price has it in it
_SHIPPED = Path(__file__).parent


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Published(_Entry):
    """A speed that somebody else published for other software; none of them is ours."""

    system: str
    source: str
    tokens_per_s: Positive
    precision: Precision | None = None  # None: the source leaves it open
    steps: int | None = None  # denoise steps per canvas; None: left open
    requests: Annotated[int, Field(ge=1)] = 1  # at once, tokens_per_s being their sum
    model: Kind = "diffusion"


class Price(_Entry):
    """For rent by the hour, or to buy."""

    usd_per_hour: Positive | None = None
    usd: Positive | None = None
    source: str

    @model_validator(mode="after")
    def _one(self) -> Price:
        if (self.usd is None) == (self.usd_per_hour is None):
            raise ValueError("give one of usd_per_hour and usd")
        return self


class Platform(_Entry):
    """One GPU; operations are dense, summed up in fp32."""

    key: str
    name: str
    memory_bytes: Positive
    head_room_bytes: Annotated[float, Field(ge=0)] = 0  # of memory shared with the host
    bandwidth_bytes_per_s: Positive
    bf16_flops_per_s: Positive
    fp8_flops_per_s: Positive
    precisions: tuple[Precision, ...]
    default_precision: Precision
    source: str
    watts: Positive
    watts_source: str
    price: Price
    published: tuple[Published, ...] = ()

    @property
    def usd_per_hour(self) -> float:
        """Rent; or what it costs over three years of work around the clock, with its power."""
        if self.price.usd_per_hour is not None:
            return self.price.usd_per_hour
        assert self.price.usd is not None, "one of both is given"
        return self.price.usd / (YEARS * HOURS) + KWH_USD * self.watts / 1e3


def shipped() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load(key: str) -> Platform:
    """A shipped platform by its name, or a file of TOML. Raises InputError."""
    path = _SHIPPED / f"{key}.toml"
    if not path.is_file():
        path = Path(key)
    if not path.is_file():
        raise InputError(
            f"platform: there is no {key!r}; give a file, or one of {', '.join(shipped())}"
        )
    try:
        return Platform.model_validate({"key": path.stem, **tomllib.loads(path.read_text())})
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"platform: {path}: {error}") from None


def chosen(names: str) -> Sequence[Platform]:
    """`all`, or names with commas between. Raises InputError."""
    keys = shipped() if names == "all" else [name.strip() for name in names.split(",")]
    return [load(key) for key in keys]
