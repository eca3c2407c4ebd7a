"""The sampling parameters of a request: what may be asked for, and what then applies.

Knows each key, its range and its default (explicit key, then preset, then checkpoint); knows
nothing of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dgemma.decoding import decode_json, shown
from dgemma.errors import InvalidRequest
from dgemma.generation import GenerationDefaults

FIELD = "sampling_parameters"

# `quality` is the checkpoint's own, adaptive. `fast` runs a fixed number of steps: no mean entropy
# lies below a confidence_threshold of 0, so no canvas stops early.
PRESETS: dict[str, dict[str, Any]] = {
    "quality": {},
    "fast": {"max_denoising_steps": 16, "confidence_threshold": 0.0},
}


@dataclass(frozen=True)
class Sampling:
    """What decides a request's tokens, besides its prompt and template; nothing is left open."""

    max_new_tokens: int
    max_denoising_steps: int
    t_min: float
    t_max: float
    entropy_bound: float  # nats
    stability_threshold: int  # earlier argmax canvases that must be equal
    confidence_threshold: float  # nats; 0 = never stop before max_denoising_steps
    seed: int  # 0 <= seed < 2**63
    stop: tuple[str, ...]
    ignore_eos: bool
    return_token_ids: bool
    return_tags: bool = False  # whether the text keeps the tags of thinking and tool calls


class SamplingParameters(BaseModel):
    """The JSON object as it came; a key that is left out is None. Descriptions are its ranges."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    max_new_tokens: int | None = Field(
        None, ge=1, description="an integer from 1 to max_model_len (here {max_model_len})"
    )
    max_denoising_steps: int | None = Field(
        None, ge=1, le=1024, description="an integer from 1 to 1024"
    )
    t_min: float | None = Field(
        None, gt=0, le=100, description="a number with 0 < t_min <= t_max (equality is allowed)"
    )
    t_max: float | None = Field(
        None, gt=0, le=100, description="a number with t_min <= t_max <= 100 (equality is allowed)"
    )
    entropy_bound: float | None = Field(None, gt=0, description="a finite number > 0, in nats")
    stability_threshold: int | None = Field(
        None, ge=0, le=16, description="an integer from 0 to 16"
    )
    confidence_threshold: float | None = Field(
        None, ge=0, description="a finite number >= 0, in nats (0 never stops early)"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="an integer from 0 to 2**63 - 1")
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(
        None,
        max_length=16,
        description="a string or an array of at most 16, each of 1 to 256 characters",
    )
    ignore_eos: bool | None = Field(None, description="true or false")
    preset: Literal["quality", "fast"] | None = Field(None, description='"quality" or "fast"')
    return_token_ids: bool | None = Field(None, description="true or false")
    return_tags: bool | None = Field(None, description="true or false")
    priority: int | None = Field(
        None,
        ge=-1000,
        le=1000,
        description="an integer from -1000 to 1000 that the tenant's limits allow",
    )
    deadline_s: float | None = Field(
        None, gt=0, le=86_400, description="a number of seconds above 0 and at most 86400"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: object) -> object:
        if value is None:
            raise ValueError("null is not a value")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @classmethod
    def from_wire(cls, raw: bytes | None, max_model_len: int) -> SamplingParameters:
        """Parse and check each key by itself; None is an empty object.

        Raises InvalidRequest naming the key, what it was and what is allowed.
        """
        data = {} if raw is None else decode_json(FIELD, raw)
        if not isinstance(data, dict):
            raise InvalidRequest(
                FIELD, f'got {shown(data)}; allowed: a JSON object such as {{"seed": 1}}'
            )
        for key in data:
            if key not in cls.model_fields:
                raise InvalidRequest(
                    f"{FIELD}.{shown(key)[1:-1]}",
                    f"unknown key; known: {', '.join(cls.model_fields)}; remove it",
                )
        try:
            parameters = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            _refuse(first["loc"], first["input"], max_model_len)
        if (parameters.max_new_tokens or 0) > max_model_len:
            _refuse(("max_new_tokens",), parameters.max_new_tokens, max_model_len)
        return parameters

    def resolve(self, defaults: GenerationDefaults, max_new_tokens: int, seed: int) -> Sampling:
        """Everything that applies; `max_new_tokens` and `seed` are what the caller settled on.

        Raises InvalidRequest where an explicit temperature does not go with the other one.
        """
        explicit = self.model_dump(include=self.model_fields_set)
        values = {
            "t_min": defaults.t_min,
            "t_max": defaults.t_max,
            "max_denoising_steps": defaults.max_denoising_steps,
            "entropy_bound": defaults.entropy_bound,
            "stability_threshold": defaults.stability_threshold,
            "confidence_threshold": defaults.confidence_threshold,
            **PRESETS[self.preset or "quality"],
            **explicit,
        }
        if values["t_min"] > values["t_max"]:
            key = "t_min" if self.t_min is not None else "t_max"
            raise InvalidRequest(
                f"{FIELD}.{key}",
                f"got t_min {values['t_min']} above t_max {values['t_max']}; allowed: "
                "0 < t_min <= t_max <= 100; send both, or leave both out",
            )
        return Sampling(
            max_new_tokens=max_new_tokens,
            max_denoising_steps=values["max_denoising_steps"],
            t_min=values["t_min"],
            t_max=values["t_max"],
            entropy_bound=values["entropy_bound"],
            stability_threshold=values["stability_threshold"],
            confidence_threshold=values["confidence_threshold"],
            seed=seed,
            stop=tuple(self.stop or ()),
            ignore_eos=bool(self.ignore_eos),
            return_token_ids=bool(self.return_token_ids),
            return_tags=bool(self.return_tags),
        )


def _refuse(location: tuple[int | str, ...], value: object, max_model_len: int) -> NoReturn:
    key = str(location[0])
    path = key + "".join(f"[{index}]" for index in location[1:])
    field = SamplingParameters.model_fields[key]
    allowed = str(field.description).format(max_model_len=max_model_len)
    raise InvalidRequest(
        f"{FIELD}.{path}",
        f"got {shown(value)}; allowed: {allowed}; change it, or leave the key out for the default",
    )
