"""Engines that are set aside: what is served instead, what says so, and the way back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.profiles.aside import Aside, aside_of, set_aside, take_back
from dgemma.profiles.engine_rollback import roll_engine_back
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.layout import REASON
from dgemma.profiles.locks import InUse
from dgemma.profiles.profile import Profile, profiles
from dgemma.profiles.prune import verdicts
from dgemma.profiles.selection import Selection
from dgemma.profiles.serving import Wanted, open_wanted
from tests.dgemma.profiles.stores import (
    GEOMETRY,
    NO_GPU,
    ON_SPARK,
    write_engine,
    write_weights,
)

WRONG = Aside.of("verification", "passes: wrong: denoise")


def opened(
    place: Path, machine: Machine = NO_GPU, preferred: str | None = None
) -> tuple[Profile, Selection]:
    wanted = Wanted(place, None, GEOMETRY, preferred=preferred)
    return open_wanted(wanted, lambda found: found, InUse(), lambda: machine, lambda: None)


def names(selection: Selection) -> list[str]:
    return [refusal.name for refusal in selection.fell_back_from]


def test_the_next_profile_is_served_and_the_reason_is_told(tmp_path: Path) -> None:
    set_aside(write_engine(tmp_path / "fp32"), WRONG)
    write_engine(tmp_path / "int4", "int4")
    _, selection = opened(tmp_path)
    assert selection.directory == str(tmp_path / "int4")
    [missed] = selection.fell_back_from
    assert missed.name == selection.wanted == "onnxruntime-cpu-fp32-tp1-pp1"
    assert "passes: wrong: denoise" in missed.reason
    assert f"{tmp_path}/fp32.set-aside" in missed.reason


def test_what_would_not_have_been_served_is_not_missed(tmp_path: Path) -> None:
    write_engine(tmp_path / "fp32", written=2e9)
    set_aside(write_engine(tmp_path / "older", written=1e9), WRONG)
    set_aside(write_engine(tmp_path / "int4", "int4", written=3e9), WRONG)
    set_aside(write_engine(tmp_path / "plan", "nvfp4", "sm121"), WRONG)
    assert names(opened(tmp_path)[1]) == []
    set_aside(write_engine(tmp_path / "newer", written=3e9), WRONG)
    assert names(opened(tmp_path)[1]) == ["onnxruntime-cpu-fp32-tp1-pp1"]


def test_an_engine_of_another_version_of_the_runtime_is_not_missed(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", "fp8")
    write_engine(tmp_path / "fp8", "fp8", "sm121")
    set_aside(write_engine(tmp_path / "nvfp4", "nvfp4", "sm121", version="1.0"), WRONG)
    assert names(opened(tmp_path, ON_SPARK)[1]) == []
    set_aside(write_engine(tmp_path / "nvfp4", "nvfp4", "sm121"), WRONG)
    assert names(opened(tmp_path, ON_SPARK)[1]) == ["tensorrt_rtx-sm121-nvfp4-tp1-pp1"]


def test_what_is_set_aside_is_never_pruned_and_not_selected(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "fp32")
    away = set_aside(engine, WRONG)
    assert away == aside_of(engine) and not engine.exists()
    inventory = Inventory.of(tmp_path)
    assert profiles(inventory, NO_GPU) == []
    [verdict] = verdicts(inventory, [], None)
    assert verdict.keep and "set aside" in verdict.why
    take_back(away, engine)
    assert not (engine / REASON).exists() and len(profiles(Inventory.of(tmp_path), NO_GPU)) == 1


def test_a_reason_that_cannot_be_read_keeps_the_engine_away(tmp_path: Path) -> None:
    away = set_aside(write_engine(tmp_path / "fp32"), WRONG)
    (away / REASON).write_text("{")
    [found] = Inventory.of(tmp_path).set_aside
    assert "cannot be read" in found.why


# What is preferred


def test_the_preferred_precision_goes_first_where_it_is(tmp_path: Path) -> None:
    write_engine(tmp_path / "fp32")
    write_engine(tmp_path / "int4", "int4")
    assert opened(tmp_path, preferred="int4")[1].directory.endswith("int4")
    by_name = opened(tmp_path, preferred="onnxruntime-cpu-int4-tp1-pp1")[1]
    assert by_name.directory.endswith("int4") and names(by_name) == []


def test_where_the_preferred_one_is_missing_the_next_is_served_and_it_shows(
    tmp_path: Path,
) -> None:
    write_engine(tmp_path / "fp32")
    write_engine(tmp_path / "spark", "int4", "sm121")
    _, selection = opened(tmp_path, preferred="int4")
    assert selection.directory.endswith("fp32") and selection.wanted == "int4"
    assert "has no engine of it for cpu" in selection.fell_back_from[0].reason


def test_a_preferred_one_that_is_set_aside_is_missed_under_its_name(tmp_path: Path) -> None:
    write_engine(tmp_path / "fp32")
    set_aside(write_engine(tmp_path / "int4", "int4"), WRONG)
    assert names(opened(tmp_path, preferred="int4")[1]) == ["onnxruntime-cpu-int4-tp1-pp1"]
    assert names(opened(tmp_path, preferred="fp32")[1]) == []


# Back to the engine before


def test_an_engine_is_rolled_back_and_forth(tmp_path: Path) -> None:
    write_engine(tmp_path / "old", written=1e9)
    write_engine(tmp_path / "new", written=2e9)
    assert str(tmp_path / "old") in roll_engine_back(tmp_path, NO_GPU)
    _, selection = opened(tmp_path)
    assert selection.directory == str(tmp_path / "old")
    assert "rolled back to old" in selection.fell_back_from[0].reason
    assert str(tmp_path / "new") in roll_engine_back(tmp_path, NO_GPU)
    assert opened(tmp_path)[1].directory == str(tmp_path / "new")


def test_what_is_rolled_back_is_what_the_service_prefers(tmp_path: Path) -> None:
    write_engine(tmp_path / "fp32")
    for name, written in (("old", 1e9), ("new", 2e9)):
        write_engine(tmp_path / name, "int4", written=written)
    assert str(tmp_path / "old") in roll_engine_back(tmp_path, NO_GPU, preferred="int4")
    assert opened(tmp_path, preferred="int4")[1].directory == str(tmp_path / "old")
    assert str(tmp_path / "new") in roll_engine_back(tmp_path, NO_GPU, preferred="int4")


def test_the_engines_of_other_machines_stay_as_they_are(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", "fp8")
    for name, written in (("a", 1e9), ("b", 2e9)):
        write_engine(tmp_path / f"cpu-{name}", written=written)
        write_engine(tmp_path / f"spark-{name}", "fp8", "sm121", written=written)
    no_cpu = replace(ON_SPARK, runtimes={"tensorrt_rtx": ON_SPARK.runtimes["tensorrt_rtx"]})
    roll_engine_back(tmp_path, no_cpu)
    assert opened(tmp_path, no_cpu)[1].directory == str(tmp_path / "spark-a")
    assert opened(tmp_path)[1].directory == str(tmp_path / "cpu-b")


def test_without_another_engine_there_is_no_way_back(tmp_path: Path) -> None:
    write_engine(tmp_path / "only")
    with pytest.raises(ConfigurationError, match="no other engine for this machine"):
        roll_engine_back(tmp_path, NO_GPU)
