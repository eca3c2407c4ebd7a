"""An engine directory that is not whole is refused, by the name of the file at fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma.engine.base import Capacity
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.errors import ConfigurationError
from dgemma.manifest import FILE_NAME
from dgemma_build.cpu import GRAPH, INDEX, WEIGHTS
from dgemma_build.engine import build_engine
from tests.manifests import edit_manifest, renew_hashes
from tests.oracle.checkpoints import TEXT, write_tiny_checkpoint

Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, emitted_once: None) -> Path:
    root = tmp_path_factory.mktemp("whole")
    checkpoint = write_tiny_checkpoint(root / "checkpoint")
    build_engine(checkpoint, "cpu", "fp32", root / "engine")
    return root / "engine"


@pytest.fixture
def engine(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "engine"))


def open_engine(directory: Path) -> OnnxEngine:
    return OnnxEngine(directory, Capacity(slots=1, context=64, rows=2), threads=1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """One bit of the last byte; the size stays."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(("file", "known"), [(GRAPH, "ids"), (INDEX, "start")])
def test_a_graph_that_takes_another_kind_of_pass_is_refused(
    engine: Path, file: str, known: str
) -> None:
    """As one that another version of this software emitted."""
    graph = onnx.load(engine / file, load_external_data=False)
    for node in graph.graph.node:
        node.input[:] = ["other" if name == known else name for name in node.input]
    (value,) = (value for value in graph.graph.input if value.name == known)
    value.name = "other"
    onnx.save(graph, engine / file)
    renew_hashes(engine)
    with pytest.raises(ConfigurationError, match=f"{file}: unknown inputs: other; build"):
        open_engine(engine)


def test_an_engine_without_an_index_is_refused(engine: Path) -> None:
    """Every one was, before there were any."""
    edit_manifest(engine, index=None)
    with pytest.raises(ConfigurationError, match=r"without an index; build it again with"):
        open_engine(engine)


def test_a_whole_engine_opens(engine: Path) -> None:
    assert open_engine(engine).geometry.num_experts == TEXT["num_experts"]


@pytest.mark.parametrize("name", [FILE_NAME, GRAPH, INDEX, WEIGHTS])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty])
def test_a_file_that_is_missing_or_cut_short_is_named(
    engine: Path, name: str, damage: Damage
) -> None:
    damage(engine / name)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine / name) in str(error.value)
    assert "dgemma-build engine" in str(error.value), "says what to run"


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_a_file_with_one_bit_flipped_is_named(engine: Path, name: str) -> None:
    flip(engine / name)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine / name) in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 99},
        {"schema_version": None},
        {"target": "sm90", "runtime": {"flavour": "tensorrt", "version": "11.4"}},
        {"geometry": {"vocab_size": 320}},
        {"geometry": None},
        {"files": {GRAPH: {"size": 1}}},
        {"files": [GRAPH]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_manifest_that_this_software_cannot_use_is_named(
    engine: Path, changes: dict[str, Any]
) -> None:
    edit_manifest(engine, **changes)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine) in str(error.value)


@pytest.mark.parametrize("text", ["[]", "null", '"manifest"', "{", "\x00", "{}"])
def test_a_manifest_that_is_not_an_object_of_ours_is_named(engine: Path, text: str) -> None:
    (engine / FILE_NAME).write_text(text)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine / FILE_NAME) in str(error.value)


def test_a_manifest_that_is_not_utf8_is_named(engine: Path) -> None:
    (engine / FILE_NAME).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine / FILE_NAME) in str(error.value)


def test_a_graph_that_onnxruntime_cannot_load_is_named(engine: Path) -> None:
    (engine / GRAPH).write_bytes(b"not a graph")
    renew_hashes(engine)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine / GRAPH) in str(error.value)


@pytest.mark.parametrize("content", [{"other": torch.zeros(1)}, None])
def test_a_weight_store_without_an_embedding_is_named(
    engine: Path, content: dict[str, torch.Tensor] | None
) -> None:
    path = engine / WEIGHTS
    if content is None:
        path.write_bytes(b"not safetensors")
    else:
        save_file(content, path)
    renew_hashes(engine)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(path) in str(error.value)


def test_a_weight_store_cut_to_its_embedding_is_refused(engine: Path) -> None:
    kept = load_file(engine / WEIGHTS)["embed_tokens.weight"]
    save_file({"embed_tokens.weight": kept}, engine / WEIGHTS)
    renew_hashes(engine)
    with pytest.raises(ConfigurationError) as error:
        open_engine(engine)
    assert str(engine) in str(error.value)


def test_a_directory_without_a_manifest_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        open_engine(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(error.value)
