from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.engine.kernel_sources import executed, sources_digest
from dgemma.errors import ConfigurationError
from dgemma.manifest import FILE_NAME, SCHEMA_VERSION, Binding, Manifest, Runtime
from dgemma.precision import policy_of
from dgemma.sealed import FileRecord, sha256
from tests.dgemma.engine.fake_engine import geometry_of
from tests.manifests import edit_manifest

GRAPH, WEIGHTS = "graph.onnx", "weights.safetensors"


def engine(directory: Path) -> Manifest:
    """A directory with two files and their manifest."""
    (directory / GRAPH).write_bytes(b"graph")
    (directory / WEIGHTS).write_bytes(b"weights")
    manifest = Manifest(
        target="cpu",
        precision="fp32",
        policy=policy_of("fp32"),
        runtime=Runtime("onnxruntime", "1.0"),
        geometry=geometry_of(),
        source="abc",
        graph=GRAPH,
        weights=(WEIGHTS,),
        bindings=(Binding("ids", "I64", (-1, 8), True),),
        files={name: FileRecord.of(directory / name) for name in (GRAPH, WEIGHTS)},
        versions={"torch": "1"},
    )
    manifest.write(directory)
    return manifest


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    written = engine(tmp_path)
    assert Manifest.read(tmp_path) == written
    written.verify(tmp_path)


def test_a_manifest_is_plain_json_with_sizes_and_hashes(tmp_path: Path) -> None:
    engine(tmp_path)
    data = json.loads((tmp_path / FILE_NAME).read_text())
    assert data["schema_version"] == SCHEMA_VERSION
    assert (data["target"], data["precision"]) == ("cpu", "fp32")
    assert data["geometry"]["canvas_length"] == 8
    assert data["files"][GRAPH] == {"size": 5, "sha256": hashlib.sha256(b"graph").hexdigest()}


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    engine(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {GRAPH, WEIGHTS, FILE_NAME}


def test_what_is_executed_is_the_graph_or_the_kernels_as_they_are_installed(
    tmp_path: Path,
) -> None:
    graph = engine(tmp_path)
    assert executed(graph) == hashlib.sha256(b"graph").hexdigest()
    assert [link.file for link in graph.links] == [GRAPH]
    alone = replace(graph, graph="", weights=(), bindings=(), files={}, source="of the kernels")
    (tmp_path / "alone").mkdir()
    alone.write(tmp_path / "alone")
    assert Manifest.read(tmp_path / "alone") == alone
    alone.verify(tmp_path / "alone")
    assert (executed(alone), alone.links) == (sources_digest(), ())


def test_a_directory_without_a_manifest_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no engine here; build it again with `dgemma-b"):
        Manifest.read(tmp_path)
    with pytest.raises(ConfigurationError, match="no engine here"):
        Manifest.read(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 1'])
def test_a_manifest_that_was_cut_off(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ConfigurationError, match=r"manifest.json: cannot be read: .*build it"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, "4", None])
def test_another_schema_is_refused_with_both_versions(tmp_path: Path, version: object) -> None:
    engine(tmp_path)
    edit_manifest(tmp_path, schema_version=version)
    message = f"schema version {version}, this software reads 4"
    with pytest.raises(ConfigurationError, match=message):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"geometry": {}},
        {"geometry": None},
        {"geometry": {"layers": 3}},
        {"files": []},
        {"files": {GRAPH: {"size": 5}}},
        {"files": {GRAPH: 5}},
        {"policy": {"rules": [["*", "fp3"]], "rest": "bf16"}},
        {"runtime": {"flavour": "tensorrt"}},
        {"bindings": [{"name": "ids"}]},
        {"weights": None},
        {"surprise": 1},
    ],
)
def test_json_that_is_no_manifest(tmp_path: Path, changes: dict[str, Any]) -> None:
    engine(tmp_path)
    edit_manifest(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=r"manifest\.json: not a manifest"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}"])
def test_any_other_json_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ConfigurationError, match="not a manifest"):
        Manifest.read(tmp_path)


def test_a_flipped_bit_of_the_manifest_itself_is_found(tmp_path: Path) -> None:
    engine(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"target": "cpu"', '"target": "cpt"'))
    with pytest.raises(ConfigurationError, match=r"manifest\.json: its content has changed; build"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_a_file_that_is_gone_is_named(tmp_path: Path, name: str) -> None:
    manifest = engine(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigurationError, match=f"{name}: missing from the engine; build it"):
        manifest.verify(tmp_path, deep=False)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_a_file_that_was_cut_off_is_named_with_both_sizes(tmp_path: Path, name: str) -> None:
    manifest = engine(tmp_path)
    (tmp_path / name).write_bytes(b"cut")
    with pytest.raises(ConfigurationError, match=f"{name}: 3 bytes, manifest.json says"):
        manifest.verify(tmp_path, deep=False)


def test_a_changed_byte_is_found_by_a_deep_look_only(tmp_path: Path) -> None:
    manifest = engine(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"Weights")
    manifest.verify(tmp_path, deep=False)
    with pytest.raises(ConfigurationError, match=f"{WEIGHTS}: its content has changed"):
        manifest.verify(tmp_path)


def test_manifests_of_other_targets_can_be_read(tmp_path: Path) -> None:
    replace(engine(tmp_path), target="sm90", precision="nvfp4").write(tmp_path)
    assert Manifest.read(tmp_path).target == "sm90"


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "large").write_bytes(content)
    assert sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()
