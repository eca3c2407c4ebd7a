from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.profile import Profile, profiles
from dgemma.profiles.selection import Refusal, named, open_first, open_named
from tests.dgemma.profiles.stores import NO_GPU, ON_SPARK, write_engine, write_weights


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """fp32, then two generations of fp8, and a plan that runs elsewhere."""
    write_engine(tmp_path / "fp32")
    write_engine(tmp_path / "fp8-new", "fp8", written=2e9)
    write_engine(tmp_path / "fp8-old", "fp8", written=1e9)
    write_engine(tmp_path / "plan", "fp8", "sm121")
    return tmp_path


def found(store: Path) -> list[Profile]:
    return profiles(Inventory.of(store), NO_GPU)


def failing(*names: str) -> Callable[[Profile], str]:
    """Loads every engine but those of these directories."""

    def load(profile: Profile) -> str:
        name = profile.engine.directory.name
        if name in names:
            raise EngineFailure(f"{name}: its content has changed")
        return name

    return load


def test_the_preferred_one_is_loaded_and_nothing_is_said_to_have_failed(store: Path) -> None:
    loaded, selection = open_first(found(store), "cpu", failing())
    assert loaded == "fp32"
    assert selection.name == "onnxruntime-cpu-fp32-tp1-pp1"
    assert selection.directory == str(store / "fp32")
    assert selection.fell_back_from == ()


def test_what_cannot_be_loaded_is_passed_over_loudly(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, selection = open_first(found(store), "cpu", failing("fp32", "fp8-new"))
    assert loaded == "fp8-old"
    assert selection.fell_back_from == (
        Refusal("onnxruntime-cpu-fp32-tp1-pp1", "fp32: its content has changed"),
        Refusal("onnxruntime-cpu-fp8-tp1-pp1", "fp8-new: its content has changed"),
    )
    last = caplog.records[-1]
    assert last.levelno == logging.ERROR
    event, _, data = last.getMessage().partition(" ")
    assert event == "profile_selected"
    said = json.loads(data)
    assert said["name"] == "onnxruntime-cpu-fp8-tp1-pp1"
    assert [missed["name"] for missed in said["fell_back_from"]] == [
        "onnxruntime-cpu-fp32-tp1-pp1",
        "onnxruntime-cpu-fp8-tp1-pp1",
    ]


def test_an_engine_for_this_gpu_that_does_not_fit_is_something_to_fall_back_from(
    tmp_path: Path,
) -> None:
    write_engine(tmp_path / "plan", "nvfp4", "sm121", version="1.6")
    write_engine(tmp_path / "elsewhere", "fp8", "sm89")
    write_engine(tmp_path / "cpu")
    write_weights(tmp_path / "w", "nvfp4")
    here = profiles(Inventory.of(tmp_path), ON_SPARK)
    loaded, selection = open_first(here, "sm121", failing())
    assert loaded == "cpu"
    [missed] = selection.fell_back_from
    assert missed.name == "tensorrt_rtx-sm121-nvfp4-tp1-pp1"
    assert "compiled by tensorrt_rtx 1.6" in missed.reason


def test_where_nothing_is_left_every_reason_is_given(store: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_first(found(store), "cpu", failing("fp32", "fp8-new", "fp8-old"))
    message = str(caught.value)
    assert message.startswith("no engine can be served here:\n")
    for reason in ("fp32: its", "fp8-new: its", "fp8-old: its", "compute capability 121"):
        assert reason in message


@pytest.mark.parametrize(
    ("wanted", "directory"),
    [
        ("onnxruntime-cpu-fp32-tp1-pp1", "fp32"),
        ("onnxruntime-cpu-fp8-tp1-pp1", "fp8-new"),
        ("fp8-old", "fp8-old"),
        ("{id}", "fp8-old"),
        ("{id:.12}", "fp8-old"),
        ("{store}/fp8-old", "fp8-old"),
    ],
)
def test_a_profile_is_named_in_any_of_its_ways(store: Path, wanted: str, directory: str) -> None:
    old = next(p for p in found(store) if p.engine.directory.name == "fp8-old")
    wanted = wanted.format(id=old.id, store=store)
    assert named(found(store), store, wanted).engine.directory.name == directory


def test_an_unknown_name_is_refused_with_those_near_it(store: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        named(found(store), store, "onnxruntime-cpu-fp23-tp1-pp1")
    message = str(caught.value)
    assert message.startswith("NIM_MODEL_PROFILE: 'onnxruntime-cpu-fp23-tp1-pp1' is not in")
    assert "onnxruntime-cpu-fp32-tp1-pp1" in message
    with pytest.raises(ConfigurationError, match="none; the store holds no engine"):
        named([], store, "x")


def test_a_named_one_that_does_not_fit_is_refused_with_those_that_do(store: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        named(found(store), store, "tensorrt_rtx-sm121-fp8-tp1-pp1")
    message = str(caught.value)
    assert "compiled for a GPU of compute capability 121" in message
    assert message.endswith("these fit: onnxruntime-cpu-fp32-tp1-pp1, onnxruntime-cpu-fp8-tp1-pp1")


def test_a_named_one_that_cannot_be_loaded_is_never_replaced(store: Path) -> None:
    here = found(store)
    with pytest.raises(ConfigurationError) as caught:
        open_named(here[0], "named", here, failing("fp32"))
    assert "fp32: its content has changed; these fit: onnxruntime-cpu-fp8" in str(caught.value)
    assert open_named(here[0], "named", here, failing())[1].why == "named"
