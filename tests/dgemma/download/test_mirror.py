from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from dgemma.checkpoint_manifest import FILE_NAME, CheckpointManifest
from dgemma.download import arrival
from dgemma.download.progress import Progress
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.inventory import FoundCheckpoint, Inventory
from dgemma.profiles.layout import DOWNLOAD
from dgemma.profiles.locks import building
from dgemma.profiles.pointer import CHECKPOINTS, Pointer
from dgemma.sealed import sha256
from tests.dgemma.download.checkpoints import (
    DEMO,
    NAMES,
    WEIGHTS,
    bring,
    brought,
    forget_variables,
    run,
    write_checkpoint,
)
from tests.dgemma.profiles.stores import NO_GPU, flip, write_engine, write_weights


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "here", lambda: NO_GPU)
    forget_variables(monkeypatch)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "mirror")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def left(store: Path) -> set[str]:
    return {path.name for path in (store / CHECKPOINTS).iterdir()}


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "file://localhost{}"])
def test_a_checkpoint_comes_whole_and_is_current(mirror: Path, store: Path, spelling: str) -> None:
    place = brought(spelling.format(mirror), store)
    assert place.parent == store / CHECKPOINTS
    assert {path.name for path in place.iterdir()} == {*NAMES, WEIGHTS, FILE_NAME}
    manifest = CheckpointManifest.read(place)
    manifest.verify(place)
    assert manifest.files[WEIGHTS].sha256 == sha256(mirror / WEIGHTS)
    pointer = Pointer.read(store)
    assert pointer is not None and pointer.current.checkpoint == place.name
    assert left(store) == {place.name}


def test_revisions_stand_side_by_side_and_nothing_is_copied_twice(
    mirror: Path, store: Path, tmp_path: Path
) -> None:
    first = brought(mirror, store)
    before = (first / WEIGHTS).stat().st_ino
    assert brought(mirror, store) == first
    assert (first / WEIGHTS).stat().st_ino == before
    second = brought(write_checkpoint(tmp_path / "other", b"weights of two"), store)
    assert left(store) == {first.name, second.name}


def test_a_revision_that_was_damaged_is_brought_again(mirror: Path, store: Path) -> None:
    place = brought(mirror, store)
    flip(place / WEIGHTS)
    assert brought(mirror, store) == place
    CheckpointManifest.read(place).verify(place)
    assert left(store) == {place.name}


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_an_interrupted_copy_goes_on_from_where_it_ended(
    mirror: Path, store: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    copy, copied = arrival.copy, []

    def interrupted(original: arrival.Original, *rest: object) -> object:
        if original.path.name == WEIGHTS:
            raise arrival.DownloadFailed("the cable was pulled")
        return copy(original, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("dgemma.download.mirror.copy", interrupted)
    result = bring(mirror, store)
    assert result.exit_code == 1 and "the cable was pulled" in result.stderr
    [work] = (store / CHECKPOINTS).iterdir()
    assert work.suffix == ".partial" and (work / DOWNLOAD).exists()
    assert Pointer.read(store) is None
    (work / WEIGHTS).write_bytes(b"weights" if damage == "cut" else b"garbage that is longer")
    (work / "config.json").chmod(0o600)

    monkeypatch.setattr("dgemma.download.mirror.copy", copy)
    monkeypatch.setattr(Progress, "advance", lambda self, size: copied.append(size))
    place = brought(mirror, store)
    assert (place / WEIGHTS).read_bytes() == b"weights of one"
    assert (place / "config.json").stat().st_mode & 0o777 == 0o600  # the same file
    assert sum(copied) == sum((mirror / name).stat().st_size for name in (*NAMES, WEIGHTS))
    assert left(store) == {place.name}


def test_the_hashes_of_a_mirrored_store_are_held_to(
    mirror: Path, store: Path, tmp_path: Path
) -> None:
    place = brought(mirror, store)
    flip(place / WEIGHTS)
    result = bring(place, tmp_path / "second")
    assert result.exit_code == 1
    assert f"{place}: {WEIGHTS}: is damaged there" in result.stderr
    assert "repair the mirror" in result.stderr


def test_a_snapshot_of_the_hub_s_cache_keeps_its_commit(tmp_path: Path, store: Path) -> None:
    commit = "0123456789" * 4
    assert brought(write_checkpoint(tmp_path / "snapshots" / commit), store).name == commit


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/no/such/mirror", "no such directory; expected: hf://ORG/NAME"),
        ("hf://name", "--source: got 'hf://name'; expected: hf://ORG/NAME"),
        ("s3://bucket/name", "--source: got 's3://bucket/name'; expected: "),
        ("file://elsewhere/models", "is on host elsewhere; mount it"),
        ("", "--source: not given, nor NIM_MODEL_NAME"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, said: str, store: Path) -> None:
    result = bring(source, store)
    assert result.exit_code == 2 and said in result.stderr
    assert not store.exists()


def test_what_cannot_be_brought_is_said(mirror: Path, store: Path, tmp_path: Path) -> None:
    lora = bring(mirror, store, "--lora")
    assert lora.exit_code == 2 and "--lora: the model has no adapters" in lora.stderr
    named = bring(mirror, store, "--profiles", "x")
    assert named.exit_code == 2 and "holds a checkpoint and no profiles" in named.stderr
    both = bring(mirror, store, "--all", "-p", "x")
    assert both.exit_code == 2 and "--all: includes" in both.stderr
    (mirror / WEIGHTS).rename(mirror / "model.safetensors.index.json")
    index = '{"weight_map": {"a": "model-1.safetensors"}}'
    (mirror / "model.safetensors.index.json").write_text(index)
    shards = bring(mirror, store)
    assert shards.exit_code == 1 and "model-1.safetensors: missing, though" in shards.stderr
    (tmp_path / "empty").mkdir()
    empty = bring(tmp_path / "empty", store)
    assert empty.exit_code == 2 and "holds nothing that can be served here" in empty.stderr


def test_a_disk_that_is_too_small_is_seen_before(
    mirror: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(arrival.shutil, "disk_usage", lambda path: usage(100, 0, 100))
    result = bring(mirror, store)
    assert result.exit_code == 2
    assert f"{mirror} needs 16.8 MB and 100 bytes are free; make room" in result.stderr


def test_two_do_not_bring_the_same_at_once(store: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    mirror = write_checkpoint(tmp_path / commit)
    with building(store / CHECKPOINTS / commit):
        result = bring(mirror, store)
    assert result.exit_code == 2 and "is being brought by process" in result.stderr


@pytest.fixture
def mirrored(mirror: Path, tmp_path: Path) -> Path:
    """A store with one revision, an engine for here, two for GPUs with weights, and an old one."""
    root = tmp_path / "mirrored"
    content = CheckpointManifest.read(brought(mirror, root)).content
    of_demo = {"geometry": Geometry.from_checkpoint(DEMO)}
    write_engine(root / "engines" / "fp32", checkpoint=content, written=1e9, **of_demo)
    write_engine(root / "engines" / "old", "int4", checkpoint="another", **of_demo)
    write_engine(root / "engines" / "plan", "fp8", "sm121", **of_demo)
    write_engine(root / "engines" / "kernels", "fp8", "gpu", **of_demo)
    write_weights(root / "weights" / "fp8", "fp8", source=content, **of_demo)
    return root


def held(store: Path) -> set[str]:
    inventory = Inventory.of(store, deep=True)
    assert not inventory.broken
    engines = {f"{e.manifest.target}-{e.manifest.precision}" for e in inventory.engines}
    return engines | {f"weights {w.manifest.precision}" for w in inventory.weights}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"cpu-fp32"}),
        (("--profiles", "tensorrt_rtx-sm121-fp8-tp1-pp1"), {"sm121-fp8", "weights fp8"}),
        (
            ("-p", "tensorrt_rtx-sm121-fp8-tp1-pp1", "engines/fp32"),
            {"sm121-fp8", "weights fp8", "cpu-fp32"},
        ),
        (("--profiles", "torch-gpu-fp8-tp1-pp1"), {"gpu-fp8", "weights fp8"}),
        (("--all",), {"sm121-fp8", "gpu-fp8", "weights fp8", "cpu-fp32", "cpu-int4"}),
    ],
)
def test_profiles_of_a_mirrored_store(
    mirrored: Path, store: Path, options: tuple[str, ...], expected: set[str]
) -> None:
    place = brought(mirrored, store, *options)
    assert held(store) == expected
    pointer = Pointer.read(store)
    assert pointer is not None and pointer.current.checkpoint == place.name
    before = {path: path.stat().st_ino for path in store.rglob("*") if path.is_file()}
    assert brought(mirrored, store, *options) == place
    after = {path: path.stat().st_ino for path in store.rglob("*") if path.is_file()}
    assert before == after


def test_a_profile_comes_with_its_time_and_is_listed_as_there(mirrored: Path, store: Path) -> None:
    brought(mirrored, store)
    [engine] = Inventory.of(store).engines
    assert engine.written == 1e9
    assert "selected onnxruntime-cpu-fp32-tp1-pp1" in run("profiles", store).stdout


def test_a_profile_that_the_mirror_does_not_have(mirrored: Path, store: Path) -> None:
    result = bring(mirrored, store, "-p", "int5")
    assert result.exit_code == 2
    assert "--profiles: 'int5' is not in" in result.stderr and "sm121-fp8" in result.stderr


def test_a_damaged_engine_of_a_mirror_is_not_brought(mirrored: Path, store: Path) -> None:
    flip(mirrored / "engines" / "fp32" / "weights.safetensors")
    result = bring(mirrored, store)
    assert result.exit_code == 1 and "weights.safetensors: is damaged there" in result.stderr
    assert not Inventory.of(store).engines


def test_a_manifest_that_points_elsewhere_is_refused(mirror: Path, store: Path) -> None:
    place = brought(mirror, store)
    manifest = CheckpointManifest.read(place)
    files = {**manifest.files, "../escaped": manifest.files[WEIGHTS]}
    CheckpointManifest("one", "x", "y", files).write(place)
    result = bring(place, store.with_name("other"))
    assert result.exit_code == 2 and "no name of a file here" in result.stderr


def test_an_unfinished_download_may_be_pruned_and_what_is_current_is_not(
    mirror: Path, store: Path
) -> None:
    place = brought(mirror, store)
    work = place.with_name("incoming-x.partial")
    shutil.copytree(place, work)
    (work / DOWNLOAD).write_text("{}")
    (work / ".cache").mkdir()
    result = run("profiles", store, "--prune", "--yes")
    assert result.exit_code == 0, result.output
    assert "a download that did not finish" in result.stdout
    assert left(store) == {place.name}
    assert isinstance(Inventory.of(store).checkpoints[0], FoundCheckpoint)
