"""Which checkpoint `ensure` works on: what is in the store is taken without asking anybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgemma.checkpoint_manifest import CheckpointManifest
from dgemma.errors import ConfigurationError
from dgemma.profiles.pointer import CHECKPOINTS, Choice, Pointer
from dgemma_build.ensure import source as module
from dgemma_build.ensure.source import found, make_current
from tests.dgemma.download.checkpoints import brought, write_checkpoint

HUB = "hf://org/name"
ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def bring(*_: object) -> None:
        raise AssertionError("the hub is asked")

    monkeypatch.setattr(module, "bring", bring)


def of_the_hub(store: Path, revision: str, written: float) -> Path:
    """As a download leaves it."""
    mirror = write_checkpoint(store.parent / f"mirror-{revision}", revision.encode())
    place = brought(mirror, store, "--no-use")
    manifest = CheckpointManifest.read(place)
    origin = f"{HUB}@{revision}"
    CheckpointManifest(**vars(manifest) | {"revision": revision, "origin": origin}).write(place)
    os.utime(place / "revision.json", (written, written))
    return place.rename(place.with_name(revision))


def say(line: str) -> None:
    raise AssertionError(line)


@pytest.mark.usefixtures("nobody_is_asked")
def test_of_a_source_of_the_store_the_named_the_current_or_the_newest_is_taken(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    one, two = of_the_hub(store, ONE, 1e9), of_the_hub(store, TWO, 2e9)
    assert found(store, HUB, None, say).directory == two
    assert found(store, HUB, ONE, say).directory == one
    assert found(store, f"{HUB}@{ONE}", None, say).directory == one
    Pointer(Choice(ONE)).write(store)
    assert found(store, HUB, None, say).directory == one, "after a rollback it stays"
    assert found(store, None, None, say).directory == one
    assert not found(store, HUB, None, say).is_new


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_revision_that_came_from_a_mirror_is_known_by_its_name(tmp_path: Path) -> None:
    store = tmp_path / "store"
    place = brought(write_checkpoint(tmp_path / "mirror"), store, "--no-use")
    assert found(store, HUB, place.name, say).directory == place


def test_what_is_not_there_is_brought_and_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, mirror = tmp_path / "store", write_checkpoint(tmp_path / "mirror")
    orders: list[str] = []
    real = module.bring

    def bring(order: module.Order, root: Path, progress: module.Progress) -> object:
        orders.append(order.source)
        return real(module.Order(str(mirror), use=order.use), root, progress)

    monkeypatch.setattr(module, "bring", bring)
    said: list[str] = []
    taken = found(store, HUB, ONE, said.append)
    assert orders == [f"{HUB}@{ONE}"] and said == [f"bringing {HUB}@{ONE} into {store}"]
    assert taken.is_new and taken.directory.parent == store / CHECKPOINTS
    assert Pointer.read(store) is None, "only what can be served becomes current"


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"DGEMMA_CHECKPOINT: not set, and .* no current"):
        found(tmp_path, None, None, say)
    with pytest.raises(ConfigurationError, match=r"no checkpoint here: it has no config\.json"):
        found(tmp_path, str(tmp_path), None, say)
    with pytest.raises(ConfigurationError, match=r"--revision: goes with hf://ORG/NAME"):
        found(tmp_path, str(tmp_path), ONE, say)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file: cannot be written"):
        found(tmp_path / "file", HUB, None, say)


def test_the_pointer_moves_only_to_a_revision_of_the_store(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
    make_current(tmp_path, tmp_path / "elsewhere")
    assert Pointer.read(tmp_path) is None
    for name in ("one", "two", "two"):
        make_current(tmp_path, tmp_path / CHECKPOINTS / name)
    assert Pointer.read(tmp_path) == Pointer(Choice("two"), Choice("one"))
