"""The shape of a DiffusionGemma network, read from a checkpoint's `config.json`.

Knows which configurations can be served and refuses the others by key; knows nothing of weights.
Field names are those of Hugging Face's `DiffusionGemmaTextConfig`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgemma.errors import ConfigurationError

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer.

    `default` rotates every pair of a head; `proportional` spaces its frequencies over the whole
    head but rotates only the first `partial_rotary_factor` of it (transformers,
    `_compute_proportional_rope_parameters`).
    """

    rope_type: str
    rope_theta: float
    partial_rotary_factor: float = 1.0

    def inverse_frequencies(self, head_dim: int) -> tuple[float, ...]:
        """`head_dim // 2` frequencies in radians per token; zero where nothing rotates."""
        if self.rope_type == "default":
            rotated = int(head_dim * self.partial_rotary_factor)
            return tuple(self.rope_theta ** -(i / rotated) for i in range(0, rotated, 2))
        angles = int(self.partial_rotary_factor * head_dim // 2)
        moving = [self.rope_theta ** -(2 * i / head_dim) for i in range(angles)]
        return tuple(moving + [0.0] * (head_dim // 2 - angles))


@dataclass(frozen=True)
class LayerGeometry:
    """One decoder layer: its attention kind, head size and K/V heads."""

    layer_type: str
    head_dim: int
    num_key_value_heads: int

    @property
    def is_full(self) -> bool:
        return self.layer_type == FULL


@dataclass(frozen=True)
class Geometry:
    """Everything that decides a tensor's shape or a pass's algebra."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layers: tuple[LayerGeometry, ...]
    sliding_rope: Rope
    full_rope: Rope
    sliding_window: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    canvas_length: int
    max_position_embeddings: int
    final_logit_softcapping: float
    rms_norm_eps: float

    def rope(self, layer: LayerGeometry) -> Rope:
        return self.full_rope if layer.is_full else self.sliding_rope

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Geometry:
        """The inverse of `to_dict`; raises KeyError or TypeError on foreign data."""
        fields = dict(data)
        fields["layers"] = tuple(LayerGeometry(**layer) for layer in fields["layers"])
        fields["sliding_rope"] = Rope(**fields["sliding_rope"])
        fields["full_rope"] = Rope(**fields["full_rope"])
        return cls(**fields)

    @classmethod
    def from_checkpoint(cls, directory: Path) -> Geometry:
        """Read `config.json` of an HF checkpoint.

        Raises ConfigurationError naming the key where the file is missing or corrupt, where a
        value is impossible, or where it asks for what this software does not compute.
        """
        config = read_config(directory)
        text = config.get("text_config")
        if not isinstance(text, dict):
            raise ConfigurationError(
                f"{directory}/config.json: 'text_config' is missing; "
                "this is not a DiffusionGemma checkpoint"
            )
        return _Reader(directory / "config.json", config, text).geometry()


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` as a dict; ConfigurationError where it cannot be read."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file; point at a directory that holds a Hugging Face checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path}: expected a JSON object")
    return config


@dataclass(frozen=True)
class _Reader:
    path: Path
    config: dict[str, Any]
    text: dict[str, Any]

    def fail(self, key: str, why: str) -> ConfigurationError:
        return ConfigurationError(f"{self.path}: text_config.{key}: {why}")

    def integer(self, key: str, low: int = 1, source: dict[str, Any] | None = None) -> int:
        value = (self.text if source is None else source).get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.fail(key, f"expected an integer >= {low}, got {value!r}")
        return value

    def positive(self, key: str, default: float, source: dict[str, Any] | None = None) -> float:
        """A number > 0; the default where the key is missing or null."""
        value = (self.text if source is None else source).get(key.rpartition(".")[2])
        if value is None:
            return default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise self.fail(key, f"expected a number > 0, got {value!r}")
        return float(value)

    def table(self, key: str, source: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """A JSON object; None where the key is missing or null."""
        value = (self.text if source is None else source).get(key.rpartition(".")[2])
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, f"expected an object, got {value!r}")
        return value

    def geometry(self) -> Geometry:
        text = self.text
        self.expect("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
        self.expect("attention_bias", False, False)
        self.expect("tie_word_embeddings", True, True)
        if text.get("use_bidirectional_attention") == "all":
            raise self.fail("use_bidirectional_attention", "'all' has no causal encoder to serve")
        layers = self.layers()
        heads = self.integer("num_attention_heads")
        for layer in layers:
            if heads % layer.num_key_value_heads:
                raise self.fail(
                    "num_key_value_heads",
                    f"{layer.num_key_value_heads} does not divide num_attention_heads {heads}",
                )
        experts, top_k = self.integer("num_experts"), self.integer("top_k_experts")
        if top_k > experts:
            raise self.fail("top_k_experts", f"{top_k} exceeds num_experts {experts}")
        canvas = self.config.get("canvas_length", 256)
        if not isinstance(canvas, int) or isinstance(canvas, bool) or canvas < 1:
            raise ConfigurationError(
                f"{self.path}: canvas_length: expected an integer >= 1, got {canvas!r}"
            )
        return Geometry(
            vocab_size=self.integer("vocab_size"),
            hidden_size=self.integer("hidden_size"),
            intermediate_size=self.integer("intermediate_size"),
            num_attention_heads=heads,
            layers=layers,
            sliding_rope=self.rope(SLIDING, Rope("default", 10_000.0)),
            full_rope=self.rope(FULL, Rope("proportional", 1_000_000.0, 0.25)),
            sliding_window=self.integer("sliding_window", low=2),
            num_experts=experts,
            top_k_experts=top_k,
            moe_intermediate_size=self.integer("moe_intermediate_size"),
            canvas_length=canvas,
            max_position_embeddings=self.integer("max_position_embeddings"),
            final_logit_softcapping=self.positive("final_logit_softcapping", 30.0),
            rms_norm_eps=self.positive("rms_norm_eps", 1e-6),
        )

    def expect(self, key: str, wanted: Any, default: Any) -> None:
        value = self.text.get(key, default)
        if value != wanted:
            raise self.fail(key, f"only {wanted!r} is supported, got {value!r}")

    def layers(self) -> tuple[LayerGeometry, ...]:
        types = self.text.get("layer_types")
        count = self.integer("num_hidden_layers")
        if types is None:
            types = [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)]
        if not isinstance(types, list) or len(types) != count:
            raise self.fail("layer_types", f"expected {count} entries (num_hidden_layers)")
        unknown = sorted({str(t) for t in types} - {FULL, SLIDING})
        if unknown:
            raise self.fail("layer_types", f"unknown {unknown}; known: {SLIDING}, {FULL}")
        if types[-1] != FULL:
            raise self.fail("layer_types", f"the last layer must be {FULL}")
        return tuple(self.layer(index, str(kind)) for index, kind in enumerate(types))

    def layer(self, index: int, kind: str) -> LayerGeometry:
        """HF writes `per_layer_config`; older files name the full layers' sizes `global_*`."""
        values = {
            "head_dim": self.integer("head_dim", low=2),
            "num_key_value_heads": self.integer("num_key_value_heads"),
        }
        overrides = self.table("per_layer_config")
        if overrides is not None:
            # HF pads the numbers of more than ten layers: "05".
            keys = (key for key in overrides if key.isdecimal() and int(key) == index)
            place = f"per_layer_config.{next(keys, kind)}"
            override = self.table(place, overrides) or {}
            values |= {key: self.integer(key, source=override) for key in values if key in override}
        elif kind == FULL:
            values["head_dim"] = 512
            for key, of_full in (
                ("head_dim", "global_head_dim"),
                ("num_key_value_heads", "num_global_key_value_heads"),
            ):
                if self.text.get(of_full) is not None:
                    values[key] = self.integer(of_full)
        if values["head_dim"] % 2:
            raise self.fail("head_dim", f"must be even, got {values['head_dim']}")
        return LayerGeometry(kind, values["head_dim"], values["num_key_value_heads"])

    def rope(self, kind: str, default: Rope) -> Rope:
        place = f"rope_parameters.{kind}"
        parameters = self.table(place, self.table("rope_parameters") or {})
        if parameters is None:
            return default
        rope_type = parameters.get("rope_type", default.rope_type)
        if rope_type not in ("default", "proportional"):
            raise self.fail(
                f"{place}.rope_type",
                f"{rope_type!r} is not supported; known: default, proportional",
            )
        key = f"{place}.partial_rotary_factor"
        factor = self.positive(key, 1.0, parameters)
        if rope_type == "default" and factor != 1:
            raise self.fail(key, f"must be 1 with rope_type default, got {factor}")
        if factor > 1:
            raise self.fail(key, f"must be at most 1, got {factor}")
        theta = self.positive(f"{place}.rope_theta", default.rope_theta, parameters)
        return Rope(rope_type, theta, factor)
