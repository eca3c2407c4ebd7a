from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.profiles.builder import Builder
from dgemma.profiles.locks import InUse, unused
from dgemma.profiles.profile import Profile
from dgemma.profiles.selection import Selection
from dgemma.profiles.serving import Wanted, open_wanted
from tests.dgemma.profiles.stores import (
    GEOMETRY,
    NO_GPU,
    ON_SPARK,
    cut,
    write_engine,
    write_weights,
)


def opened(
    place: Path,
    profile: str | None = None,
    machine: Machine = NO_GPU,
    in_use: InUse | None = None,
    builder: Builder | None = None,
) -> tuple[Profile, Selection]:
    """What would be loaded."""
    wanted = Wanted(place, profile, GEOMETRY)
    return open_wanted(
        wanted, lambda found: found, in_use or InUse(), lambda: machine, lambda: builder
    )


def refusal(place: Path, profile: str | None = None, machine: Machine = NO_GPU) -> str:
    with pytest.raises(ConfigurationError) as caught:
        opened(place, profile, machine)
    return str(caught.value)


def test_an_engine_directory_is_loaded_and_no_other(tmp_path: Path) -> None:
    write_engine(tmp_path / "fp32")
    profile, selection = opened(write_engine(tmp_path / "int4", "int4"))
    assert profile.engine.directory == tmp_path / "int4"
    assert selection.fell_back_from == ()
    cut(tmp_path / "int4" / "graph.onnx")
    assert refusal(tmp_path / "int4").startswith(f"{tmp_path}/int4/graph.onnx: ")


def test_a_plan_takes_the_newest_weights_beside_it(tmp_path: Path) -> None:
    plan = write_engine(tmp_path / "plan", "fp8", "sm121")
    write_weights(tmp_path / "older", "fp8", source="a", written=1e8)
    write_weights(tmp_path / "newer", "fp8", source="b")
    write_weights(tmp_path / "int4", "int4")
    _, selection = opened(plan, machine=ON_SPARK)
    assert selection.weights == str(tmp_path / "newer")


def test_another_profile_than_the_directory_holds_is_refused(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "int4", "int4")
    assert opened(engine, "onnxruntime-cpu-int4-tp1-pp1")[1].directory == str(engine)
    assert "'fp8' is not in" in refusal(engine, "fp8")


def test_of_a_store_the_preferred_one_is_loaded_or_the_one_that_was_named(tmp_path: Path) -> None:
    write_engine(tmp_path / "a", "int4")
    write_engine(tmp_path / "b")
    assert opened(tmp_path)[0].engine.directory == tmp_path / "b"
    named, selection = opened(tmp_path, "onnxruntime-cpu-int4-tp1-pp1")
    assert named.engine.directory == tmp_path / "a"
    assert selection.why == "named by the operator"


def test_a_broken_engine_is_something_to_fall_back_from(tmp_path: Path) -> None:
    write_engine(tmp_path / "a", "int4")
    cut(write_engine(tmp_path / "b") / "graph.onnx")
    write_engine(tmp_path / "c.partial")
    _, selection = opened(tmp_path)
    assert selection.directory == str(tmp_path / "a")
    [missed] = selection.fell_back_from
    assert missed.name == "onnxruntime-cpu-fp32-tp1-pp1"
    assert f"{tmp_path}/b/graph.onnx" in missed.reason


def test_an_empty_store_says_what_to_put_there(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: no engine here and no weights to make one of")
    assert f"--out {tmp_path}/NAME" in message


def test_a_store_without_anything_for_this_machine_lists_the_reasons(tmp_path: Path) -> None:
    write_engine(tmp_path / "spark", "fp8", "sm121")
    write_weights(tmp_path / "weights", "fp8")
    message = refusal(tmp_path)
    assert "tensorrt_rtx-sm121-fp8-tp1-pp1: " in message
    assert "no engine for cpu, and dgemma-build is not installed" in message


def test_where_the_engine_cannot_be_built_the_next_one_is_served(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", "fp8")
    write_engine(tmp_path / "cpu", "fp8")
    failing = Builder((sys.executable, "-c", "raise SystemExit('no compiler')"))
    _, selection = opened(tmp_path, machine=ON_SPARK, builder=failing)
    assert selection.name == "onnxruntime-cpu-fp8-tp1-pp1"
    [missed] = selection.fell_back_from
    assert missed.name == "sm121" and "no compiler" in missed.reason


def test_what_is_served_is_in_use_and_what_failed_is_not(tmp_path: Path) -> None:
    broken, good = write_engine(tmp_path / "a"), write_engine(tmp_path / "b", "int4")
    in_use = InUse()

    def load(profile: Profile) -> None:
        if profile.engine.directory == broken:
            raise ConfigurationError("its content has changed")

    wanted = Wanted(tmp_path, None, GEOMETRY)
    open_wanted(wanted, load, in_use, lambda: NO_GPU, lambda: None)
    for directory, expected in ((broken, True), (good, False)):
        with unused(directory) as free:
            assert free is expected
    in_use.close()


def test_an_engine_that_is_removed_meanwhile_is_passed_over(tmp_path: Path) -> None:
    write_engine(tmp_path / "a")
    write_engine(tmp_path / "b", "int4")

    def load(profile: Profile) -> Path:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        raise ConfigurationError("damaged")

    with pytest.raises(ConfigurationError, match="b: cannot be read"):
        open_wanted(Wanted(tmp_path, None, GEOMETRY), load, InUse(), lambda: NO_GPU, lambda: None)
