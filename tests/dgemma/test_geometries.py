from __future__ import annotations

import math

import pytest

from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, geometry_names, named_geometry
from dgemma.geometry import FULL, SLIDING, LayerGeometry
from dgemma.model.checkpoint import parameter_shapes


def test_the_published_model_is_known() -> None:
    assert DEFAULT in geometry_names()
    g = named_geometry(DEFAULT)
    assert (g.canvas_length, g.vocab_size, g.hidden_size) == (256, 262144, 2816)
    assert (g.num_experts, g.top_k_experts, g.moe_intermediate_size) == (128, 8, 704)
    sliding, full = LayerGeometry(SLIDING, 256, 8), LayerGeometry(FULL, 512, 2)
    assert g.layers == ((sliding,) * 5 + (full,)) * 5
    assert (g.sliding_window, g.max_position_embeddings) == (1024, 262144)


@pytest.mark.parametrize(
    ("part", "billions"),
    [
        ("", 25.25),
        (".experts.", 22.84),
        (".mlp.", 0.535),
        (".router.proj", 0.0108),
        ("embed_tokens", 0.738),
        ("self_conditioning", 0.0178),
    ],
)
def test_its_parameters_are_as_many_as_published(part: str, billions: float) -> None:
    shapes = parameter_shapes(named_geometry(DEFAULT))
    count = sum(math.prod(shape) for name, shape in shapes.items() if part in name)
    assert count / 1e9 == pytest.approx(billions, rel=3e-3)


def test_its_attention_is_as_large_as_published() -> None:
    g = named_geometry(DEFAULT)
    sizes = {FULL: 0, SLIDING: 0}
    for name, shape in parameter_shapes(g).items():
        if ".self_attn." in name:
            sizes[g.layers[int(name.split(".")[1])].layer_type] += math.prod(shape)
    assert sizes[SLIDING] / 1e9 == pytest.approx(0.865, rel=1e-3)
    assert sizes[FULL] / 1e9 == pytest.approx(0.245, rel=1e-3)


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match=rf"'7b' is not known; known: .*{DEFAULT}"):
        named_geometry("7b")
