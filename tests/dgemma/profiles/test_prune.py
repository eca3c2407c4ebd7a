from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.layout import PIN
from dgemma.profiles.locks import InUse, building
from dgemma.profiles.profile import profiles
from dgemma.profiles.prune import Verdict, freed, remove, verdicts
from tests.dgemma.profiles.stores import NO_GPU, ON_SPARK, cut, write_engine, write_weights


def judged(root: Path, machine: Machine = NO_GPU) -> dict[str, Verdict]:
    inventory = Inventory.of(root)
    found = profiles(inventory, machine)
    chosen = next((p for p in found if p.refusal is None), None)
    return {v.found.directory.name: v for v in verdicts(inventory, found, chosen)}


def removable(root: Path, machine: Machine = NO_GPU) -> set[str]:
    return {name for name, verdict in judged(root, machine).items() if not verdict.keep}


def test_the_newest_two_of_every_name_are_kept_whatever_machine_they_are_for(
    tmp_path: Path,
) -> None:
    write_weights(tmp_path / "weights", "fp8")
    for age in range(4):
        write_engine(tmp_path / f"cpu-{age}", "fp8", written=1e9 - age)
        write_engine(tmp_path / f"gpu-{age}", "fp8", "sm89", version=f"1.{age}", written=1e9 - age)
    assert removable(tmp_path) == {"cpu-2", "cpu-3", "gpu-2", "gpu-3"}
    assert judged(tmp_path)["cpu-1"].why == "the one before, to go back to"
    assert "weights of tensorrt_rtx-sm89-fp8" in judged(tmp_path)["weights"].why


def test_weights_go_with_the_engines_that_need_them(tmp_path: Path) -> None:
    write_engine(tmp_path / "plan", "fp8", "sm121")
    for age in range(3):
        write_weights(tmp_path / f"fp8-{age}", "fp8", source=str(age), written=1e9 - age)
    write_weights(tmp_path / "int4", "int4")
    assert removable(tmp_path, ON_SPARK) == {"fp8-2", "int4"}


def test_engines_and_weights_go_back_by_one_each(tmp_path: Path) -> None:
    """Two engines of the newest weights would else be all that is kept."""
    for age in range(3):
        write_engine(tmp_path / f"plan-{age}", "fp8", "sm121", written=2e9 - age)
        write_weights(tmp_path / f"fp8-{age}", "fp8", source=str(age), written=1e9 - age)
    assert removable(tmp_path, ON_SPARK) == {"plan-2", "fp8-2"}


def test_what_would_be_served_is_kept_however_old_it_is(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", "fp8")
    for age in range(3):
        version = "1.8" if age < 2 else "1.7.1.116"
        write_engine(tmp_path / f"{age}", "fp8", "sm121", version=version, written=1e9 - age)
    assert judged(tmp_path, ON_SPARK)["2"].why == "would be served here"
    assert removable(tmp_path, ON_SPARK) == set()


def test_what_is_pinned_stays_and_so_do_the_weights_of_a_plan(tmp_path: Path) -> None:
    for age in range(3):
        write_engine(tmp_path / f"cpu-{age}", written=1e9 - age)
        write_engine(tmp_path / f"plan-{age}", "fp8", "sm89", written=1e9 - age)
        write_weights(tmp_path / f"fp8-{age}", "fp8", source=str(age), written=1e9 - age)
    assert removable(tmp_path) == {"cpu-2", "plan-2", "fp8-2"}
    for name in ("cpu-2", "plan-2", "fp8-2"):
        (tmp_path / name / PIN).touch()
        assert judged(tmp_path)[name].why == "pinned"
    assert removable(tmp_path) == set()


def test_what_is_broken_or_unfinished_can_go_and_holds_no_place(tmp_path: Path) -> None:
    for age in range(3):
        write_engine(tmp_path / f"cpu-{age}", written=1e9 - age)
    cut(tmp_path / "cpu-0" / "graph.onnx")
    write_engine(tmp_path / "cpu-9.partial")
    (tmp_path / "cpu-8.old").mkdir()
    assert removable(tmp_path) == {"cpu-0", "cpu-9.partial", "cpu-8.old"}


@pytest.mark.parametrize("name", ["backup.old", "cut"])
def test_what_holds_somebodys_files_is_never_removed(tmp_path: Path, name: str) -> None:
    cut(write_engine(tmp_path / name) / "graph.onnx")
    (tmp_path / name / "thesis.tex").write_text("")
    verdict = judged(tmp_path)[name]
    assert verdict.keep and "holds thesis.tex" in verdict.why


def test_nothing_outside_the_store_is_removed(tmp_path: Path) -> None:
    cut(write_engine(tmp_path / "elsewhere" / "a") / "graph.onnx")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "linked").symlink_to(tmp_path / "elsewhere")
    assert judged(tmp_path / "store")["a"].why == "not inside the store"
    assert removable(tmp_path / "elsewhere" / "a") == set()


def test_what_is_used_or_built_is_kept_and_is_not_removed_later_either(tmp_path: Path) -> None:
    used = cut_engine(tmp_path / "used")
    built = cut_engine(tmp_path / "built.partial")
    found = {f.directory: f for f in Inventory.of(tmp_path).everything}
    in_use = InUse()
    in_use.add(used)
    with building(tmp_path / "built"):
        now = judged(tmp_path)
        assert now["used"].why == "in use" and now["used"].keep
        assert "is being built by process" in now["built.partial"].why
        for directory in (used, built):
            with pytest.raises(ConfigurationError, match=r"in use|is being built by"):
                remove(found[directory])
    in_use.close()
    assert removable(tmp_path) == {"used", "built.partial"}
    for directory in (used, built):
        remove(found[directory])
    assert list(tmp_path.iterdir()) == []


def cut_engine(directory: Path) -> Path:
    cut(write_engine(directory) / "graph.onnx")
    return directory


def test_a_removal_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    write_engine(tmp_path / "a.pruned")
    assert removable(tmp_path) == {"a.pruned"}
    remove(Inventory.of(tmp_path).broken[0])
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_have_another_name_are_not_freed(tmp_path: Path) -> None:
    first = write_engine(tmp_path / "a")
    second = tmp_path / "b"
    second.mkdir()
    for path in first.iterdir():
        os.link(path, second / path.name)
    both = Inventory.of(tmp_path).engines
    assert freed(both[:1]) == 0
    assert freed(both) == both[0].size


def test_a_store_is_kept_with_the_engine_that_was_built_of_it(tmp_path: Path) -> None:
    """An engine for `cpu` has copied what it needs; a GPU's would still need the store."""
    for age in range(3):
        write_weights(tmp_path / f"weights-{age}", "nvfp4", source=f"{age}", written=1e9 - age)
        write_engine(tmp_path / f"cpu-{age}", "nvfp4", checkpoint=f"{age}", written=1e9 - age)
    write_weights(tmp_path / "int4", "int4", source="0")
    assert removable(tmp_path) == {"cpu-2", "weights-2", "int4"}
    assert "was built of it" in judged(tmp_path)["weights-0"].why


def test_a_plan_that_holds_its_weights_keeps_the_one_store_that_it_serves_with(
    tmp_path: Path,
) -> None:
    for age in range(4):
        write_weights(tmp_path / f"fp8-{age}", "fp8", source=f"{age} ", written=1e9 - age)
    write_engine(tmp_path / "plan", "fp8", "sm121", constants="3 recipe")
    for machine in (NO_GPU, ON_SPARK):
        assert removable(tmp_path, machine) == {"fp8-0", "fp8-1", "fp8-2"}
