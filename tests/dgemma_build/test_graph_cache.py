from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx.helper import make_graph, make_model

import dgemma_build.definition
import dgemma_build.graph_cache
from dgemma.geometry import Geometry
from dgemma_build.graph_cache import cached_graph
from tests.dgemma.engine.fake_engine import geometry_of

GEOMETRY = geometry_of()


class Emission:
    """Stands in for `emit`: a graph that is told apart by its name, and a count."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self, geometry: Geometry, dtype: torch.dtype, fused: bool, shared: bool
    ) -> onnx.ModelProto:
        self.count += 1
        name = f"{len(geometry.layers)} {dtype} {fused} {shared}"
        return make_model(make_graph([], name, [], []))


@pytest.fixture
def emission(monkeypatch: pytest.MonkeyPatch) -> Emission:
    emission = Emission()
    monkeypatch.setattr(dgemma_build.graph_cache, "emit", emission)
    return emission


def test_a_graph_is_emitted_once(emission: Emission, tmp_path: Path) -> None:
    first = cached_graph(GEOMETRY, torch.bfloat16, tmp_path / "cache")
    assert cached_graph(GEOMETRY, torch.bfloat16, tmp_path / "cache") == first
    assert emission.count == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".onnx"]


def test_another_geometry_type_or_form_is_another_graph(emission: Emission, tmp_path: Path) -> None:
    wide = geometry_of(hidden_size=512)
    wanted = (
        (GEOMETRY, torch.bfloat16, False, False),
        (wide, torch.bfloat16, False, False),
        (GEOMETRY, torch.float32, False, False),
        (GEOMETRY, torch.float32, True, False),
        (GEOMETRY, torch.float32, True, True),
    )
    for geometry, dtype, fused, shared in wanted:
        cached_graph(geometry, dtype, tmp_path, fused, shared)
    assert emission.count == 5
    for geometry, dtype, fused, shared in wanted:
        graph = cached_graph(geometry, dtype, tmp_path, fused, shared)
        assert graph.graph.name == f"2 {dtype} {fused} {shared}"
    assert emission.count == 5


def test_another_definition_is_another_graph(
    emission: Emission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_graph(GEOMETRY, torch.float32, tmp_path)
    monkeypatch.setattr(dgemma_build.definition, "MODULES", (dgemma_build.graph_cache,))
    cached_graph(GEOMETRY, torch.float32, tmp_path)
    assert emission.count == 2


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_file_is_replaced(emission: Emission, tmp_path: Path, damage: str) -> None:
    wanted = cached_graph(GEOMETRY, torch.float32, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    flipped = bytes([content[0], content[1] ^ 1]) + content[2:]
    path.write_bytes({"flipped": flipped, "truncated": content[:-1], "empty": b""}[damage])
    assert cached_graph(GEOMETRY, torch.float32, tmp_path) == wanted
    assert emission.count == 2
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_emission_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> onnx.ModelProto:
        raise KeyboardInterrupt

    monkeypatch.setattr(dgemma_build.graph_cache, "emit", fail)
    with pytest.raises(KeyboardInterrupt):
        cached_graph(GEOMETRY, torch.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(
    emission: Emission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(dgemma_build.graph_cache.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        cached_graph(GEOMETRY, torch.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []
