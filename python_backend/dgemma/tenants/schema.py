"""The tenants' file as it is written: its fields, their ranges, and what each refuses.

Knows one value at a time; what values say together is checked in `dgemma.tenants.roster`.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dgemma.decoding import shown
from dgemma.scheduler.tenancy import Limits
from dgemma.tenants.keys import KeyHash

# In metrics, this is everyone who has no name of their own.
RESERVED_NAMES = frozenset({"other"})


def _parsed(text: str) -> str:
    KeyHash.parse(text)
    return text


def _free(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError("this name is taken by the metrics; choose another")
    return name


Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"),
    AfterValidator(_free),
]
Hash = Annotated[str, AfterValidator(_parsed)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LimitsEntry(_Entry):
    """Fields of `dgemma.scheduler.tenancy.Limits`; one that is left out is no limit."""

    max_running: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_queued: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10**12)] | None = None
    max_context: Annotated[int, Field(ge=2, le=10**9)] | None = None
    min_priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    max_priority: Annotated[int, Field(ge=-1000, le=1000)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_priority > self.max_priority:
            raise ValueError(
                f"min_priority {self.min_priority} is above max_priority {self.max_priority}; "
                "give both"
            )
        return self

    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class TenantEntry(_Entry):
    name: Name
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    limits: LimitsEntry = LimitsEntry()
    keys: Annotated[list[Hash], Field(min_length=1)]


class PrefixEntry(_Entry):
    """The beginning of prompts, as a raw prompt or as its token ids."""

    text: Annotated[str, Field(min_length=1)] | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("give either text or token_ids")
        return self


class TenantsFile(_Entry):
    tenants: Annotated[list[TenantEntry], Field(min_length=1)]
    shared_prefixes: list[PrefixEntry] = []


_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): TenantsFile,
    ("tenants",): TenantEntry,
    ("tenants", "limits"): LimitsEntry,
    ("shared_prefixes",): PrefixEntry,
}


def explain(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """Where each mistake is, and what it is; keys and their hashes are not repeated."""
    return [(found["loc"], _explain(found)) for found in error.errors(include_url=False)]


def _explain(found: Any) -> str:
    location = found["loc"]
    if found["type"] == "extra_forbidden":
        parent = tuple(part for part in location[:-1] if isinstance(part, str))
        return f"unknown field; known: {', '.join(_MODELS[parent].model_fields)}"
    if found["type"] == "missing":
        return "missing"
    message = str(found["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    if found["type"] == "string_pattern_mismatch":
        message = (
            "must be 1 to 63 lower-case letters, digits, dots, dashes and underscores, the first "
            "and the last a letter or digit"
        )
    return message if "keys" in location else f"{message}; got {shown(found['input'])}"
