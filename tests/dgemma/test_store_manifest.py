from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError
from dgemma.precision import policy_of
from dgemma.sealed import FileRecord
from dgemma.store_manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    SourceRecord,
    StoreManifest,
    TensorRecord,
)
from tests.dgemma.engine.fake_engine import geometry_of

FIRST, SECOND = "layer-00.safetensors", "rest.safetensors"


def store(directory: Path) -> StoreManifest:
    """A directory with two files and their manifest."""
    (directory / FIRST).write_bytes(b"first shard")
    (directory / SECOND).write_bytes(b"second")
    manifest = StoreManifest(
        precision="int4",
        policy=policy_of("int4"),
        geometry=geometry_of(),
        origin="dgemma-build",
        source="abc",
        recipe="def",
        tensors={
            "a": TensorRecord(FIRST, "U8", (2, 3), 5),
            "a.block_scale": TensorRecord(FIRST, "BF16", (2, 1), 1),
            "b": TensorRecord(SECOND, "BF16", (3,), 0),
        },
        files={name: FileRecord.of(directory / name) for name in (FIRST, SECOND)},
        sources={"model.safetensors": SourceRecord(1, 2, "c")},
        versions={"torch": "1"},
    )
    manifest.write(directory)
    return manifest


def edit(directory: Path, seal: bool = True, **changes: Any) -> None:
    """Change the manifest, and its seal with it where one would be found out by that alone."""
    path = directory / FILE_NAME
    data = json.loads(path.read_text()) | changes
    if seal:
        del data["seal"]
        text = json.dumps(data, sort_keys=True)
        data["seal"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(data))


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    written = store(tmp_path)
    assert StoreManifest.read(tmp_path) == written
    written.verify(tmp_path)
    assert written.size == len(b"first shard" + b"second")
    assert written.parameters == ["a", "b"]


def test_it_is_plain_json_with_what_others_need(tmp_path: Path) -> None:
    store(tmp_path)
    data = json.loads((tmp_path / FILE_NAME).read_text())
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["policy"]["rest"] == "bf16"
    assert data["tensors"]["a"] == {"file": FIRST, "dtype": "U8", "shape": [2, 3], "offset": 5}
    assert data["files"][SECOND]["sha256"] == hashlib.sha256(b"second").hexdigest()


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    store(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {FIRST, SECOND, FILE_NAME}


def test_a_directory_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no weight store here; write it again with `dg"):
        StoreManifest.read(tmp_path)
    with pytest.raises(ConfigurationError, match="no weight store here"):
        StoreManifest.read(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 1'])
def test_a_manifest_that_was_cut_off(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ConfigurationError, match=r"store\.json: cannot be read: .*write it again"):
        StoreManifest.read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}", '{"schema_version": 1}'])
def test_any_other_json_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ConfigurationError, match=r"store\.json: not a manifest"):
        StoreManifest.read(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_is_refused_with_both_versions(tmp_path: Path, version: object) -> None:
    store(tmp_path)
    edit(tmp_path, schema_version=version)
    with pytest.raises(ConfigurationError, match=f"schema version {version}, this software reads"):
        StoreManifest.read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"geometry": {}},
        {"policy": {"rules": [["*", "fp7"]], "rest": "bf16"}},
        {"files": []},
        {"files": {FIRST: {"size": 5}}},
        {"tensors": {"a": {"file": FIRST}}},
        {"tensors": {"a": 3}},
        {"tensors": {"a": {"file": FIRST, "dtype": "F7", "shape": [1], "offset": 0}}},
        {"sources": {"a": {"size": 3}}},
        {"surprise": 1},
    ],
)
def test_json_that_is_no_manifest(tmp_path: Path, changes: dict[str, Any]) -> None:
    store(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=r"store\.json: not a manifest"):
        StoreManifest.read(tmp_path)


def test_every_bit_of_the_manifest_is_sealed(tmp_path: Path) -> None:
    """Any flipped bit is refused, wherever it is; white space alone may change."""
    store(tmp_path)
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    for index in range(0, len(content), 7):
        for bit in (1, 4):
            flipped = bytearray(content)
            flipped[index] ^= bit
            if bytes(flipped).split() == content.split():
                continue
            path.write_bytes(flipped)
            with pytest.raises(ConfigurationError, match=r"store\.json"):
                StoreManifest.read(tmp_path)


def test_a_value_that_was_edited_is_found(tmp_path: Path) -> None:
    store(tmp_path)
    edit(tmp_path, seal=False, precision="fp8")
    with pytest.raises(ConfigurationError, match=r"store\.json: its content has changed"):
        StoreManifest.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "shape", "offset"),
    [(FIRST, [2, 3], 6), (FIRST, [100, 3], 0), ("nowhere.safetensors", [1], 0)],
)
def test_tensors_outside_their_file_are_named(
    tmp_path: Path, file: str, shape: list[int], offset: int
) -> None:
    store(tmp_path)
    place = {"file": file, "dtype": "U8", "shape": shape, "offset": offset}
    edit(tmp_path, tensors={"odd": place})
    with pytest.raises(ConfigurationError, match=rf"tensor odd is not inside {file}"):
        StoreManifest.read(tmp_path)


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_file_that_is_gone_is_named(tmp_path: Path, name: str) -> None:
    manifest = store(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        ConfigurationError, match=f"{name}: missing from the weight store; write it"
    ):
        manifest.verify(tmp_path, deep=False)


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, name: str) -> None:
    manifest = store(tmp_path)
    (tmp_path / name).write_bytes(b"cut")
    with pytest.raises(ConfigurationError, match=f"{name}: 3 bytes, store.json says"):
        manifest.verify(tmp_path, deep=False)


def test_a_changed_bit_is_found_by_a_deep_look_only(tmp_path: Path) -> None:
    manifest = store(tmp_path)
    (tmp_path / SECOND).write_bytes(b"Second")
    manifest.verify(tmp_path, deep=False)
    with pytest.raises(ConfigurationError, match=f"{SECOND}: its content has changed"):
        manifest.verify(tmp_path)


def test_verifying_says_how_far_it_is(tmp_path: Path) -> None:
    heard: list[int] = []
    store(tmp_path).verify(tmp_path, advance=heard.append)
    assert heard == [len(b"first shard"), len(b"second")]


def test_the_store_that_is_asked_for_is_accepted(tmp_path: Path) -> None:
    manifest = store(tmp_path)
    manifest.expect(tmp_path)
    same = {"precision": "int4", "geometry": geometry_of(), "policy": policy_of("int4")}
    manifest.expect(tmp_path, **same)  # type: ignore[arg-type]


def test_another_precision_geometry_or_policy_is_refused(tmp_path: Path) -> None:
    manifest = store(tmp_path)
    with pytest.raises(ConfigurationError, match=r"store\.json: a store of int4 .* fp8 is asked"):
        manifest.expect(tmp_path, precision="fp8")
    other = replace(geometry_of(), sliding_window=7, num_experts=5)
    with pytest.raises(ConfigurationError, match=r"differs in sliding_window, num_experts"):
        manifest.expect(tmp_path, geometry=other)
    with pytest.raises(ConfigurationError, match="other weights are quantised"):
        manifest.expect(tmp_path, policy=policy_of("int4", "experts"))
