"""A checkpoint's own generation settings, from `generation_config.json`.

Knows the keys and defaults of Hugging Face's `DiffusionGemmaGenerationConfig`; knows nothing of
requests, which may override them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dgemma.errors import ConfigurationError
from dgemma.geometry import read_config

FILE_NAME = "generation_config.json"
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class GenerationDefaults:
    """What a request gets that sets nothing itself. Temperatures divide logits, entropies are nats.

    `declared` holds the keys that `generation_config.json` itself sets. HF's `generate` knows no
    other stop or padding ids: with `eos_token_id` undeclared it never stops early, whereas
    `eos_token_ids` then holds those of `config.json`, so that a service does.
    """

    max_new_tokens: int
    max_denoising_steps: int
    t_min: float
    t_max: float
    entropy_bound: float
    stability_threshold: int
    confidence_threshold: float
    eos_token_ids: tuple[int, ...]  # at least one; templates are padded with the first
    pad_token_id: int
    bos_token_id: int
    declared: frozenset[str] = frozenset()

    @classmethod
    def from_checkpoint(cls, directory: Path) -> GenerationDefaults:
        """Read `generation_config.json`, and `config.json` for token ids that it leaves out.

        Keys that are missing or null take HF's defaults. Raises ConfigurationError naming file
        and key where a file is missing or corrupt or a value is impossible.
        """
        path = directory / FILE_NAME
        file = _parse(_GenerationFile, path, _read(path))
        text_config = read_config(directory).get("text_config") or {}
        tokens = _parse(_TokenIds, directory / "config.json", text_config, "text_config.")
        if file.t_max < file.t_min:
            raise ConfigurationError(
                f"{path}: t_max: got {file.t_max}, below t_min {file.t_min}; "
                "the schedule falls from t_max to t_min"
            )
        declared = file.model_fields_set
        ids = {
            key: getattr(file if key in declared else tokens, key) for key in _TokenIds.model_fields
        }
        return cls(
            max_new_tokens=file.max_new_tokens,
            max_denoising_steps=file.max_denoising_steps,
            t_min=file.t_min,
            t_max=file.t_max,
            entropy_bound=file.sampler_config.entropy_bound,
            stability_threshold=file.stability_threshold,
            confidence_threshold=file.confidence_threshold,
            eos_token_ids=tuple(ids["eos_token_id"]),
            pad_token_id=ids["pad_token_id"],
            bos_token_id=ids["bos_token_id"],
            declared=frozenset(declared),
        )


def _listed(value: object) -> object:
    return [value] if isinstance(value, int) else value


_TokenId = Annotated[int, Field(ge=0)]
_StopIds = Annotated[list[_TokenId], BeforeValidator(_listed), Field(min_length=1)]


class _TokenIds(BaseModel):
    """Token ids with the defaults of HF's text configuration."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    eos_token_id: _StopIds = [1]
    pad_token_id: _TokenId = 0
    bos_token_id: _TokenId = 2


class _EntropyBound(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    entropy_bound: float = Field(default=0.1, gt=0)
    cls_name: Literal["EntropyBoundSamplerConfig"] = Field(
        default="EntropyBoundSamplerConfig", alias="_cls_name"
    )


class _GenerationFile(_TokenIds):
    """HF's ranges, but that a checkpoint may also set t_min = t_max or confidence_threshold 0."""

    max_new_tokens: int = Field(default=256, ge=1)
    max_denoising_steps: int = Field(default=48, ge=1)
    sampler_config: _EntropyBound = _EntropyBound()
    t_min: float = Field(default=0.4, ge=0)
    t_max: float = Field(default=0.8, gt=0)
    stability_threshold: int = Field(default=1, ge=0)
    confidence_threshold: float = Field(default=0.005, ge=0)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file; it names the ids at which answers stop: copy it from the "
            "checkpoint's source, next to config.json"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as JSON: {error}") from None


def _parse(model: type[Model], path: Path, data: object, prefix: str = "") -> Model:
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: {prefix or 'the file'}: expected a JSON object")
    given: dict[str, Any] = {key: value for key, value in data.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"{path}: {prefix}{key}: {first['msg']}, got {first['input']!r}"
        ) from None
