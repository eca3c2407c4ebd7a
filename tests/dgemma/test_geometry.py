from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError
from dgemma.geometry import FULL, SLIDING, Geometry, LayerGeometry, Rope

TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "global_head_dim": 48,
    "num_global_key_value_heads": 2,
    "sliding_window": 128,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 1024,
}
ABSENT = object()


def write(directory: Path, canvas_length: object = 96, **text: Any) -> Path:
    """`config.json` with these keys changed, added or (ABSENT) left out."""
    values = {k: v for k, v in {**TEXT, **text}.items() if v is not ABSENT}
    config = {"text_config": values, "canvas_length": canvas_length}
    config = {k: v for k, v in config.items() if v is not ABSENT}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def read(directory: Path, **text: Any) -> Geometry:
    return Geometry.from_checkpoint(write(directory, **text))


def refusal(directory: Path, **text: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(directory, **text)
    return str(caught.value)


# What is read


def test_sizes_are_read_by_their_hf_names(tmp_path: Path) -> None:
    geometry = read(tmp_path)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
        assert getattr(geometry, key) == TEXT[key]
    for key in ("sliding_window", "num_experts", "top_k_experts", "moe_intermediate_size"):
        assert getattr(geometry, key) == TEXT[key]
    assert (geometry.canvas_length, geometry.max_position_embeddings) == (96, 1024)


def test_every_sixth_layer_is_full_where_no_pattern_is_given(tmp_path: Path) -> None:
    kinds = [layer.layer_type for layer in read(tmp_path, num_hidden_layers=12).layers]
    assert kinds == ([SLIDING] * 5 + [FULL]) * 2


def test_full_layers_have_sizes_of_their_own(tmp_path: Path) -> None:
    pattern = [SLIDING, FULL, FULL]
    layers = read(tmp_path, num_hidden_layers=3, layer_types=pattern).layers
    assert layers == (
        LayerGeometry(SLIDING, 32, 4),
        LayerGeometry(FULL, 48, 2),
        LayerGeometry(FULL, 48, 2),
    )


def test_what_is_left_out_takes_hf_defaults(tmp_path: Path) -> None:
    geometry = read(
        tmp_path, global_head_dim=ABSENT, num_global_key_value_heads=ABSENT, canvas_length=ABSENT
    )
    assert geometry.layers[-1] == LayerGeometry(FULL, 512, 4)
    assert geometry.canvas_length == 256
    assert (geometry.final_logit_softcapping, geometry.rms_norm_eps) == (30.0, 1e-6)
    assert geometry.sliding_rope == Rope("default", 10_000.0)
    assert geometry.full_rope == Rope("proportional", 1_000_000.0, 0.25)


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        ({"1": {"head_dim": 16}}, [(32, 4), (16, 4)]),
        ({FULL: {"head_dim": 64, "num_key_value_heads": 1}}, [(32, 4), (64, 1)]),
        ({"0": {"num_key_value_heads": 8}, "1": {}}, [(32, 8), (32, 4)]),
        ({}, [(32, 4), (32, 4)]),
    ],
)
def test_layers_may_be_sized_one_by_one(
    tmp_path: Path, overrides: dict[str, Any], layers: list[tuple[int, int]]
) -> None:
    geometry = read(
        tmp_path, num_hidden_layers=2, layer_types=[SLIDING, FULL], per_layer_config=overrides
    )
    assert [(x.head_dim, x.num_key_value_heads) for x in geometry.layers] == layers


def test_layers_are_known_by_padded_numbers_too(tmp_path: Path) -> None:
    """As HF writes them where there are more than ten."""
    geometry = read(
        tmp_path,
        num_hidden_layers=12,
        layer_types=[SLIDING] * 11 + [FULL],
        per_layer_config={"05": {"head_dim": 16}, "11": {"num_key_value_heads": 1}},
    )
    sizes = [(x.head_dim, x.num_key_value_heads) for x in geometry.layers]
    assert sizes == [(32, 4)] * 5 + [(16, 4)] + [(32, 4)] * 5 + [(32, 1)]


def test_each_kind_of_layer_has_its_rope(tmp_path: Path) -> None:
    ropes = {
        SLIDING: {"rope_type": "default", "rope_theta": 500.0},
        FULL: {"rope_type": "proportional", "rope_theta": 7.0, "partial_rotary_factor": 0.5},
    }
    geometry = read(tmp_path, rope_parameters=ropes)
    sliding, full = geometry.layers[0], geometry.layers[-1]
    assert geometry.rope(sliding) == Rope("default", 500.0)
    assert geometry.rope(full) == Rope("proportional", 7.0, 0.5)


def test_every_geometry_survives_a_round_trip_through_json(tmp_path: Path) -> None:
    geometry = read(tmp_path)
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@pytest.mark.parametrize("broken", ["layers", "full_rope", "vocab_size"])
def test_foreign_data_is_no_geometry(tmp_path: Path, broken: str) -> None:
    data = read(tmp_path).to_dict()
    del data[broken]
    with pytest.raises((KeyError, TypeError)):
        Geometry.from_dict(data)


def test_the_demo_checkpoint_has_a_geometry(demo_checkpoint: Path) -> None:
    geometry = Geometry.from_checkpoint(demo_checkpoint)
    assert (geometry.canvas_length, geometry.vocab_size) == (96, 320)
    assert geometry.layers[-1].is_full


# Frequencies


def test_default_rope_rotates_every_pair() -> None:
    frequencies = Rope("default", 10_000.0).inverse_frequencies(8)
    assert frequencies == pytest.approx((1.0, 0.1, 0.01, 0.001))


def test_proportional_rope_spaces_over_the_whole_head_and_rotates_a_part() -> None:
    frequencies = Rope("proportional", 10_000.0, 0.5).inverse_frequencies(8)
    assert frequencies == pytest.approx((1.0, 0.1, 0.0, 0.0))


def test_the_published_full_layers_have_64_frequencies() -> None:
    frequencies = Rope("proportional", 1e6, 0.25).inverse_frequencies(512)
    assert len(frequencies) == 256
    assert sum(f > 0 for f in frequencies) == 64
    assert frequencies[63] == pytest.approx(1e6 ** -(126 / 512))


# What is refused


@pytest.mark.parametrize("key", [key for key in TEXT if not key.startswith(("global", "num_glo"))])
@pytest.mark.parametrize("value", [ABSENT, 0, -1, 2.5, "3", True, None])
def test_a_size_that_is_no_positive_integer_is_named(
    tmp_path: Path, key: str, value: object
) -> None:
    assert f"text_config.{key}: expected an integer" in refusal(tmp_path, **{key: value})


@pytest.mark.parametrize("key", ["global_head_dim", "num_global_key_value_heads"])
@pytest.mark.parametrize("value", [-2, 2.5, "many"])
def test_a_full_layers_size_that_is_no_positive_integer_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    assert "text_config." in refusal(tmp_path, **{key: value})


@pytest.mark.parametrize("value", [0, -4, "x", 1.5, None, True])
def test_a_canvas_length_that_is_no_positive_integer_is_refused(
    tmp_path: Path, value: object
) -> None:
    assert "canvas_length" in refusal(tmp_path, canvas_length=value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation: only 'gelu_pytorch_tanh'"),
        ({"attention_bias": True}, "attention_bias: only False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: only True"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention: 'all'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"num_global_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"top_k_experts": 5}, "top_k_experts: 5 exceeds num_experts 4"),
        ({"head_dim": 31}, "head_dim: must be even, got 31"),
        ({"global_head_dim": 49}, "head_dim: must be even, got 49"),
        ({"sliding_window": 1}, "sliding_window: expected an integer >= 2"),
        ({"layer_types": [FULL] * 5}, "layer_types: expected 6 entries"),
        ({"layer_types": "full"}, "layer_types: expected 6 entries"),
        ({"layer_types": [*["linear"] * 5, FULL]}, r"unknown ['linear']"),
        ({"layer_types": [SLIDING] * 6}, "the last layer must be full_attention"),
        ({"per_layer_config": {"0": {"head_dim": "x"}}}, "head_dim: expected an integer"),
        ({"rope_parameters": {FULL: {"rope_type": "yarn"}}}, "'yarn' is not supported"),
        (
            {"rope_parameters": {SLIDING: {"partial_rotary_factor": 0.5}}},
            "partial_rotary_factor: must be 1 with rope_type default",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    text = refusal(tmp_path, **changes)
    assert message in text
    assert text.startswith(f"{tmp_path}/config.json: ")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"final_logit_softcapping": "x"}, "final_logit_softcapping"),
        ({"rms_norm_eps": [1]}, "rms_norm_eps"),
        ({"rope_parameters": {FULL: {"rope_theta": "x"}}}, "rope_theta"),
        ({"rope_parameters": {FULL: {"partial_rotary_factor": [1]}}}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {FULL: 3}}, "rope_parameters"),
        ({"per_layer_config": [1]}, "per_layer_config"),
        ({"per_layer_config": {"0": 3}}, "per_layer_config"),
    ],
)
def test_a_value_of_another_type_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    assert key in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "'text_config' is missing; this is not a DiffusionGemma checkpoint"),
        ('{"text_config": 3}', "'text_config' is missing"),
    ],
)
def test_a_config_that_is_no_config(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=message):
        Geometry.from_checkpoint(tmp_path)


def test_a_directory_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config.json: no such file; point at"):
        Geometry.from_checkpoint(tmp_path)
