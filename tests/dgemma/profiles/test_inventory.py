from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.profiles.inventory import Inventory
from tests.dgemma.profiles.stores import cut, flip, write_engine, write_weights


def test_engines_and_weights_are_found_wherever_they_stand(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engines" / "cpu" / "a")
    weights = write_weights(tmp_path / "w", "int4")
    found = Inventory.of(tmp_path)
    assert [e.directory for e in found.engines] == [engine]
    assert [w.directory for w in found.weights] == [weights]
    assert found.broken == ()
    assert found.engines[0].size == sum(path.stat().st_size for path in engine.iterdir())


def test_what_is_neither_is_passed_over(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "abc.onnx").write_bytes(b"graph")
    assert Inventory.of(tmp_path).everything == ()


def test_reading_a_store_writes_nothing_to_it(tmp_path: Path) -> None:
    write_engine(tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    Inventory.of(tmp_path, deep=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("suffix", [".partial", ".old", ".pruned"])
def test_what_a_killed_run_left_is_no_engine_even_if_it_is_whole(
    tmp_path: Path, suffix: str
) -> None:
    write_engine(tmp_path / f"cpu-1.32{suffix}")
    found = Inventory.of(tmp_path)
    assert found.engines == ()
    [left] = found.broken
    assert left.unfinished and "did not finish" in left.why


def test_a_file_that_is_cut_short_is_named_and_so_is_the_engine(tmp_path: Path) -> None:
    cut(write_engine(tmp_path / "a", "fp8") / "weights.safetensors")
    [broken] = Inventory.of(tmp_path).broken
    assert broken.name == "onnxruntime-cpu-fp8-tp1-pp1"
    assert str(tmp_path / "a" / "weights.safetensors") in broken.why


def test_a_flipped_bit_shows_where_files_are_hashed_only(tmp_path: Path) -> None:
    flip(write_weights(tmp_path / "w", "int4") / "layer-00.safetensors")
    assert Inventory.of(tmp_path).broken == ()
    [broken] = Inventory.of(tmp_path, deep=True).broken
    assert broken.name == "int4 weights" and "its content has changed" in broken.why


@pytest.mark.parametrize("name", ["a", "w"])
def test_content_without_its_manifest_is_broken(tmp_path: Path, name: str) -> None:
    for path in (write_engine(tmp_path / "a"), write_weights(tmp_path / "w", "int4")):
        if path.name == name:
            for manifest in path.glob("*.json"):
                manifest.unlink()
    [broken] = Inventory.of(tmp_path).broken
    assert broken.directory == tmp_path / name and not broken.unfinished


def test_the_id_changes_with_the_content(tmp_path: Path) -> None:
    write_engine(tmp_path / "a")
    [first] = Inventory.of(tmp_path).engines
    (tmp_path / "a").rename(tmp_path / "b")
    [moved] = Inventory.of(tmp_path).engines
    assert moved.id == first.id
    write_engine(tmp_path / "b", "int4")
    [other] = Inventory.of(tmp_path).engines
    assert other.id != first.id


def test_links_to_directories_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_engine(tmp_path / "elsewhere" / "a")
    store = tmp_path / "store"
    store.mkdir()
    (store / "linked").symlink_to(tmp_path / "elsewhere")
    (store / "again").symlink_to(store)
    assert len(Inventory.of(store).engines) == 1


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: no engine here: no such directory"):
        Inventory.of(tmp_path / "nowhere")
