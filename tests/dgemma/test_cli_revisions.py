"""Revisions of a store: what is served of them, how that is switched, and what prune leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgemma import cli_profiles
from dgemma.checkpoint_manifest import CheckpointManifest
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.profiles.locks import InUse
from dgemma.profiles.pointer import FILE_NAME, Choice, Pointer
from dgemma.settings import Settings
from tests.dgemma.download.checkpoints import (
    DEMO,
    bring,
    brought,
    forget_variables,
    run,
    write_checkpoint,
)
from tests.dgemma.profiles.stores import NO_GPU, write_engine, write_weights


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(Machine, "here", lambda: NO_GPU)
    forget_variables(monkeypatch)
    monkeypatch.setenv("NIM_CACHE_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


def add(store: Path, number: int) -> str:
    """A revision with its engine."""
    mirror = write_checkpoint(store.parent / f"mirror{number}", f"weights {number}".encode())
    place = brought(mirror, store, "--no-use")
    content = CheckpointManifest.read(place).content
    write_engine(
        store / "engines" / f"fp32-{number}",
        geometry=Geometry.from_checkpoint(DEMO),
        checkpoint=content,
        written=1e9 + number,
    )
    return place.name


def use(revision: str) -> None:
    result = run("revisions", "use", revision)
    assert result.exit_code == 0, result.output


def selected(store: Path) -> dict[str, Any]:
    found = json.loads(run("profiles", store, "--json").stdout)
    chosen = [p for p in found["profiles"] if p["id"] == found["selected"]]
    return dict(chosen[0] if chosen else found)


def test_the_service_takes_what_the_pointer_says_until_it_is_told_otherwise(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = add(here, 1), add(here, 2)
    with pytest.raises(ConfigurationError, match="DGEMMA_CHECKPOINT: not set"):
        Settings.load()
    for revision in (first, second):
        use(revision)
        assert Settings.load().checkpoint == here / "checkpoint" / revision
        assert Settings.load().profile is None
    monkeypatch.setenv("DGEMMA_CHECKPOINT", str(DEMO))
    assert Settings.load().checkpoint == DEMO
    monkeypatch.delenv("DGEMMA_CHECKPOINT")
    monkeypatch.setenv("NIM_MODEL_PATH", str(here / "engines" / "fp32-1"))
    with pytest.raises(ConfigurationError, match="DGEMMA_CHECKPOINT: not set"):
        Settings.load()


def test_weights_are_those_of_the_revision_though_newer_ones_are_there(here: Path) -> None:
    first, second = add(here, 1), add(here, 2)
    use(second)
    assert selected(here)["engine"].endswith("fp32-2")
    use(first)
    assert selected(here)["engine"].endswith("fp32-1")
    [other] = [p for p in json.loads(run("profiles", "--json").stdout)["profiles"] if p["reason"]]
    assert "holds the weights of another revision" in other["reason"]


def test_rollback_goes_back_and_forth(here: Path) -> None:
    first, second = add(here, 1), add(here, 2)
    use(first)
    use(second)
    result = run("rollback")
    assert result.exit_code == 0 and f"at the next start: checkpoint {first}" in result.stderr
    assert Settings.load().checkpoint.name == first
    assert selected(here)["engine"].endswith("fp32-1")
    assert run("rollback").exit_code == 0
    assert Settings.load().checkpoint.name == second


def test_an_engine_alone_is_rolled_back_and_forth(here: Path) -> None:
    revision = add(here, 1)
    use(revision)
    result = run("rollback", "--engine")
    assert result.exit_code == 2 and "no other engine for this machine" in result.stderr
    content = CheckpointManifest.read(here / "checkpoint" / revision).content
    geometry = Geometry.from_checkpoint(DEMO)
    write_engine(here / "engines" / "rebuilt", geometry=geometry, checkpoint=content, written=2e9)
    for expected in ("fp32-1", "rebuilt"):
        result = run("rollback", "--engine")
        assert result.exit_code == 0 and f"engines/{expected}" in result.stderr
        assert selected(here)["engine"].endswith(expected)
    assert Settings.load().checkpoint.name == revision


def test_an_engine_is_rolled_back_for_the_checkpoint_that_is_served(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(here, 1)
    add(here, 2)
    monkeypatch.setenv("DGEMMA_CHECKPOINT", str(here / "checkpoint" / first))
    result = run("rollback", "--engine")
    assert result.exit_code == 2 and "no other engine" in result.stderr, "that of the second"


def test_there_may_be_nothing_to_go_back_to(here: Path) -> None:
    brought(write_checkpoint(here.parent / "mirror"), here)
    result = run("rollback")
    assert result.exit_code == 2 and "there is no previous revision" in result.stderr
    pointer = Pointer(Choice("one"), Choice("gone"))
    pointer.write(here)
    result = run("rollback")
    assert result.exit_code == 2 and "checkpoint/gone is gone" in result.stderr
    assert Pointer.read(here) == pointer


def test_one_engine_can_be_chosen_and_left_again(here: Path) -> None:
    revision = add(here, 1)
    content = CheckpointManifest.read(here / "checkpoint" / revision).content
    geometry = Geometry.from_checkpoint(DEMO)
    write_engine(here / "engines" / "rebuilt", geometry=geometry, checkpoint=content, written=2e9)
    use(revision)
    assert selected(here)["engine"].endswith("rebuilt")
    use("engines/fp32-1")
    assert selected(here)["engine"].endswith("fp32-1")
    settings = Settings.load()
    assert settings.checkpoint.name == revision and settings.profile == selected(here)["id"]
    assert run("rollback").exit_code == 0
    assert selected(here)["engine"].endswith("rebuilt") and Settings.load().profile is None


def test_the_list_says_which_is_which(here: Path) -> None:
    assert run("revisions", "list").exit_code == 2
    first, second = add(here, 1), add(here, 2)
    use(first)
    use(second[:8])
    found = json.loads(run("revisions", "list", "--json").stdout)
    said = {one["revision"]: (one["is"], one["origin"]) for one in found["revisions"]}
    assert said == {
        first: ("previous", str(here.parent / "mirror1")),
        second: ("current", str(here.parent / "mirror2")),
    }
    assert f"{second}  " in run("revisions", "list").stdout


@pytest.mark.parametrize("wanted", ["unheard-of", "0", ""])
def test_an_unknown_revision_is_refused_with_what_is_there(here: Path, wanted: str) -> None:
    first = add(here, 1)
    result = run("revisions", "use", wanted)
    assert result.exit_code == 2 and f"there: {first}, onnxruntime-cpu-fp32" in result.stderr


@pytest.mark.parametrize("content", ["", "[]", '{"current": {"checkpoint": "../x"}}', "{"])
def test_a_damaged_pointer_says_what_to_do(here: Path, content: str) -> None:
    add(here, 1)
    (here / FILE_NAME).write_text(content)
    for result in (run("profiles", here), run("revisions", "list")):
        assert result.exit_code == 2 and "store/current: cannot be read" in result.stderr
    with pytest.raises(ConfigurationError, match="remove it, and choose again"):
        Settings.load()


def test_a_revision_without_engine_does_not_replace_one_that_is_served(here: Path) -> None:
    first = add(here, 1)
    use(first)
    result = bring(write_checkpoint(here.parent / "mirror", b"weights"), here)
    assert result.exit_code == 0 and "has no weights for it; make an engine" in result.stderr
    assert Settings.load().checkpoint.name == first


def test_prune_keeps_the_current_the_previous_and_the_used_revision(here: Path) -> None:
    revisions = [add(here, number) for number in range(5)]
    use(revisions[0])
    use(revisions[1])
    in_use = InUse()
    in_use.add(here / "checkpoint" / revisions[2])
    result = run("profiles", here, "--prune", "--yes")
    in_use.close()
    assert result.exit_code == 0, result.output
    assert {p.name for p in (here / "checkpoint").iterdir()} == set(revisions[:3])
    # The two newest of the name are kept as ever, and those that the two revisions need.
    assert {p.name for p in (here / "engines").iterdir()} == {f"fp32-{n}" for n in (0, 1, 3, 4)}
    assert run("rollback").exit_code == 0
    assert selected(here)["engine"].endswith("fp32-0")


def test_a_revision_that_becomes_current_while_prune_asks_is_left(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, third = add(here, 1), add(here, 2), add(here, 3)
    use(first)
    remove = cli_profiles.remove

    def switched(found: Any) -> None:
        use(third)
        remove(found)

    monkeypatch.setattr(cli_profiles, "remove", switched)
    result = run("profiles", here, "--prune", "--yes")
    assert f"{third}: is current" in result.stderr
    assert Settings.load().checkpoint.name == third


def test_the_weights_of_the_revision_are_kept_for_engines_to_come(here: Path) -> None:
    first = add(here, 1)
    content = CheckpointManifest.read(here / "checkpoint" / first).content
    write_weights(here / "weights" / "nvfp4", "nvfp4", source=content)
    write_weights(here / "weights" / "other", "nvfp4", source="other")
    use(first)
    run("profiles", here, "--prune", "--yes")
    assert {p.name for p in (here / "weights").iterdir()} == {"nvfp4"}
