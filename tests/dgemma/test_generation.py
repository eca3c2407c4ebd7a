from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError
from dgemma.generation import GenerationDefaults
from tests.tiny_checkpoint import write_checkpoint


def read(directory: Path, generation: dict[str, Any]) -> GenerationDefaults:
    return GenerationDefaults.from_checkpoint(write_checkpoint(directory, generation))


def test_an_empty_file_takes_the_defaults_of_hf(tmp_path: Path) -> None:
    assert read(tmp_path, {}) == GenerationDefaults(
        max_new_tokens=256,
        max_denoising_steps=48,
        t_min=0.4,
        t_max=0.8,
        entropy_bound=0.1,
        stability_threshold=1,
        confidence_threshold=0.005,
        eos_token_ids=(1,),
        pad_token_id=0,
        bos_token_id=2,
        declared=frozenset(),
    )


def test_every_key_is_read(tmp_path: Path) -> None:
    generation = {
        "max_new_tokens": 384,
        "max_denoising_steps": 12,
        "sampler_config": {"entropy_bound": 0.25, "_cls_name": "EntropyBoundSamplerConfig"},
        "t_min": 0.3,
        "t_max": 0.9,
        "stability_threshold": 2,
        "confidence_threshold": 0.01,
        "eos_token_id": [1, 106, 50],
        "pad_token_id": 7,
        "bos_token_id": 8,
        "transformers_version": "5.23.0",
    }
    assert read(tmp_path, generation) == GenerationDefaults(
        max_new_tokens=384,
        max_denoising_steps=12,
        t_min=0.3,
        t_max=0.9,
        entropy_bound=0.25,
        stability_threshold=2,
        confidence_threshold=0.01,
        eos_token_ids=(1, 106, 50),
        pad_token_id=7,
        bos_token_id=8,
        declared=frozenset(generation) - {"transformers_version"},
    )


def test_null_is_a_missing_key(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("max_new_tokens", "sampler_config", "t_min", "eos_token_id"))
    assert read(tmp_path, nulls) == read(tmp_path, {})


def test_one_stop_id_need_not_be_a_list(tmp_path: Path) -> None:
    assert read(tmp_path, {"eos_token_id": 5}).eos_token_ids == (5,)


def test_token_ids_fall_back_to_the_text_config_and_count_as_undeclared(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"pad_token_id": 3})
    text_config = {"eos_token_id": [4, 5], "bos_token_id": 6, "pad_token_id": 9}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text_config}))
    defaults = GenerationDefaults.from_checkpoint(tmp_path)
    assert (defaults.eos_token_ids, defaults.bos_token_id) == ((4, 5), 6)
    assert defaults.pad_token_id == 3
    assert defaults.declared == {"pad_token_id"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 16.0),
        ("max_denoising_steps", True),
        ("max_denoising_steps", "48"),
        ("t_min", -0.1),
        ("t_max", 0),
        ("t_max", float("nan")),
        ("t_max", 0.2),  # below the default t_min
        ("stability_threshold", -1),
        ("confidence_threshold", float("inf")),
        ("eos_token_id", []),
        ("eos_token_id", -1),
        ("eos_token_id", "<eos>"),
        ("pad_token_id", 0.5),
        ("sampler_config", 0.1),
    ],
)
def test_an_impossible_value_names_file_and_key(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"generation_config\.json: {key}\b"):
        read(tmp_path, {key: value})


def test_another_sampler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"sampler_config\._cls_name.*TopKSampler"):
        read(tmp_path, {"sampler_config": {"entropy_bound": 0.1, "_cls_name": "TopKSampler"}})


def test_an_entropy_bound_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"sampler_config\.entropy_bound"):
        read(tmp_path, {"sampler_config": {"entropy_bound": 0}})


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_corrupt_file_is_named(tmp_path: Path, content: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"generation_config\.json: .*JSON"):
        GenerationDefaults.from_checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"generation_config\.json: no such file"):
        GenerationDefaults.from_checkpoint(tmp_path)


def test_a_bad_token_id_of_the_text_config_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"bos_token_id": "two"}}))
    with pytest.raises(ConfigurationError, match=r"config\.json: text_config\.bos_token_id"):
        GenerationDefaults.from_checkpoint(tmp_path)
