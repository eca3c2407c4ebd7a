from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dgemma.errors import InvalidRequest
from dgemma.sampling import Sampling, SamplingParameters
from tests.tiny_checkpoint import DEFAULTS

CHECKPOINT = Sampling(
    max_new_tokens=64,
    max_denoising_steps=48,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    stability_threshold=1,
    confidence_threshold=0.005,
    seed=7,
    stop=(),
    ignore_eos=False,
    return_token_ids=False,
)


def parse(data: object) -> SamplingParameters:
    return SamplingParameters.from_wire(json.dumps(data).encode(), max_model_len=1024)


def resolve(**data: Any) -> Sampling:
    return parse(data).resolve(DEFAULTS, max_new_tokens=64, seed=7)


def test_nothing_given_is_the_checkpoint() -> None:
    nothing = SamplingParameters.from_wire(None, max_model_len=1024)
    assert nothing.resolve(DEFAULTS, max_new_tokens=64, seed=7) == CHECKPOINT
    assert resolve() == resolve(preset="quality") == CHECKPOINT


def test_fast_runs_a_fixed_number_of_steps() -> None:
    fast = replace(CHECKPOINT, max_denoising_steps=16, confidence_threshold=0.0)
    assert resolve(preset="fast") == fast


def test_explicit_keys_win_over_the_preset() -> None:
    expected = replace(CHECKPOINT, max_denoising_steps=8, confidence_threshold=0.0)
    assert resolve(preset="fast", max_denoising_steps=8) == expected


def test_every_key_is_taken() -> None:
    given: dict[str, Any] = {
        "max_denoising_steps": 1024,
        "t_min": 0.5,
        "t_max": 0.5,
        "entropy_bound": 1,
        "stability_threshold": 0,
        "confidence_threshold": 0,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "return_token_ids": True,
        "return_tags": True,
    }
    assert resolve(**given) == replace(CHECKPOINT, **given | {"stop": ("a", "b")})


def test_stop_may_be_one_string() -> None:
    assert resolve(stop="\n\n").stop == ("\n\n",)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_of_63_bits(seed: int) -> None:
    assert parse({"seed": seed}).seed == seed


@pytest.mark.parametrize(
    ("key", "value", "shown", "allowed"),
    [
        ("max_new_tokens", 0, "0", "an integer from 1 to max_model_len (here 1024)"),
        ("max_new_tokens", 1025, "1025", "an integer from 1 to max_model_len (here 1024)"),
        ("max_new_tokens", "5", '"5"', "an integer from 1"),
        ("max_new_tokens", 5.0, "5.0", "an integer from 1"),
        ("max_new_tokens", True, "true", "an integer from 1"),
        ("max_new_tokens", None, "null", "an integer from 1"),
        ("max_denoising_steps", 1025, "1025", "an integer from 1 to 1024"),
        ("t_min", 0, "0", "0 < t_min <= t_max"),
        ("t_min", "0.4", '"0.4"', "0 < t_min <= t_max"),
        ("t_max", 100.5, "100.5", "t_min <= t_max <= 100"),
        ("t_max", False, "false", "t_min <= t_max <= 100"),
        ("entropy_bound", 0, "0", "a finite number > 0"),
        ("entropy_bound", 10**400, "1000", "a finite number > 0"),
        ("stability_threshold", -1, "-1", "an integer from 0 to 16"),
        ("stability_threshold", 17, "17", "an integer from 0 to 16"),
        ("confidence_threshold", -1e-9, "-1e-09", "a finite number >= 0"),
        ("seed", -1, "-1", "an integer from 0 to 2**63 - 1"),
        ("seed", 2**63, str(2**63), "an integer from 0 to 2**63 - 1"),
        ("stop", 5, "5", "a string or an array of at most 16"),
        ("stop", ["a"] * 17, "an array", "at most 16"),
        ("ignore_eos", 1, "1", "true or false"),
        ("ignore_eos", "true", '"true"', "true or false"),
        ("return_token_ids", None, "null", "true or false"),
        ("return_tags", "yes", '"yes"', "true or false"),
        ("priority", 1001, "1001", "an integer from -1000 to 1000"),
        ("priority", 0.5, "0.5", "an integer from -1000 to 1000"),
        ("deadline_s", 0, "0", "a number of seconds above 0 and at most 86400"),
        ("deadline_s", 86_401, "86401", "a number of seconds above 0 and at most 86400"),
        ("preset", "turbo", '"turbo"', '"quality" or "fast"'),
    ],
)
def test_a_bad_value_is_shown_with_what_is_allowed(
    key: str, value: object, shown: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({key: value})
    assert caught.value.field == f"sampling_parameters.{key}"
    assert str(caught.value).startswith(f"sampling_parameters.{key}: got {shown}")
    assert allowed in str(caught.value)


@pytest.mark.parametrize("value", ["", "x" * 257, 5, "\ud800", None])
def test_a_bad_stop_string_is_named_by_its_index(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"sampling_parameters\.stop\[1\]: got .* 256"):
        parse({"stop": ["a", value]})


def test_numbers_that_overflow_are_not_finite() -> None:
    with pytest.raises(InvalidRequest, match=r"sampling_parameters\.t_max: got Infinity; allowed"):
        SamplingParameters.from_wire(b'{"t_max": 1e999}', max_model_len=8)


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"temperature": 1})
    assert caught.value.field == "sampling_parameters.temperature"
    for known in SamplingParameters.model_fields:
        assert known in str(caught.value)


def test_an_unknown_key_may_be_any_text() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"\ud800\n" + "x" * 200: 1})
    assert str(caught.value).isascii() and str(caught.value).isprintable()


@pytest.mark.parametrize("data", [[], "fast", 1, None])
def test_only_an_object_is_allowed(data: object) -> None:
    with pytest.raises(InvalidRequest, match=r"sampling_parameters: got .* a JSON object"):
        parse(data)


@pytest.mark.parametrize(
    ("given", "key"),
    [({"t_min": 0.9}, "t_min"), ({"t_max": 0.3}, "t_max"), ({"t_min": 2, "t_max": 1}, "t_min")],
)
def test_temperatures_are_checked_against_the_one_that_applies(
    given: dict[str, float], key: str
) -> None:
    with pytest.raises(
        InvalidRequest, match=r"above t_max .* allowed: 0 < t_min <= t_max"
    ) as caught:
        resolve(**given)
    assert caught.value.field == f"sampling_parameters.{key}"
