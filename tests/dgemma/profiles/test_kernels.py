"""The engine for any GPU beside those that are compiled for one: which is served, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.machine import Machine
from dgemma.metrics.engine import profile_info
from dgemma.profiles.aside import Aside, set_aside
from dgemma.profiles.builder import Builder, BuildFailed
from dgemma.profiles.engine_rollback import roll_engine_back
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.locks import InUse
from dgemma.profiles.profile import Profile, profiles
from dgemma.profiles.selection import Selection
from dgemma.profiles.serving import Wanted, open_wanted
from tests.dgemma.profiles import stores
from tests.dgemma.profiles.stores import (
    GROUPS,
    KERNELS_ALONE,
    NO_GPU,
    SPARK,
    WITH_KERNELS,
    whole,
    write_weights,
)

WRONG = Aside.of("verification", "passes: wrong: denoise")
A100 = replace(SPARK, name="A100", compute_capability=80)
PLAN, KERNELS = "tensorrt_rtx-sm121-fp8-tp1-pp1", "torch-gpu-fp8-tp1-pp1"


def write_engine(directory: Path, precision: str, target: str, **other: Any) -> Path:
    return stores.write_engine(directory, precision, target, geometry=GROUPS, **other)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Weights in two formats, a plan for Spark, engines for any GPU and for any host."""
    root = tmp_path / "store"
    for precision in ("fp8", "int4"):
        write_weights(root / "weights" / precision, precision, **whole(precision))
        write_engine(root / f"kernels-{precision}", precision, "gpu")
    write_engine(root / "plan", "fp8", "sm121")
    write_engine(root / "host", "int4", "cpu")
    return root


def order(root: Path, machine: Machine) -> list[str]:
    found = profiles(Inventory.of(root), machine, GROUPS)
    return [p.engine.directory.name for p in found if p.refusal is None]


def opened(
    root: Path,
    machine: Machine,
    *,
    failing: tuple[str, ...] = (),
    builder: Builder | None = None,
    preferred: str | None = None,
    profile: str | None = None,
) -> tuple[Profile, Selection]:
    """What would be loaded, where engines cannot be whose directories begin like this."""

    def load(profile: Profile) -> Profile:
        if profile.engine.directory.name.startswith(failing):
            raise EngineFailure("the driver is too old")
        return profile

    wanted = Wanted(root, profile, GROUPS, preferred=preferred)
    return open_wanted(wanted, load, InUse(), lambda: machine, lambda: builder)


# Which goes first


def test_what_was_compiled_for_this_gpu_then_kernels_then_the_host(store: Path) -> None:
    assert order(store, WITH_KERNELS) == ["plan", "kernels-fp8", "kernels-int4", "host"]
    assert order(store, KERNELS_ALONE) == ["kernels-fp8", "kernels-int4", "host"]
    assert order(store, NO_GPU) == ["host"]


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [
        (80, ["int4", "bf16"]),
        (89, ["int4", "nvfp4", "fp8", "bf16"]),
        (90, ["fp8", "bf16", "nvfp4", "int4"]),
        (100, ["fp8", "bf16", "nvfp4", "int4"]),
        (120, ["nvfp4", "int4", "fp8", "bf16"]),
        (121, ["nvfp4", "fp8", "int4", "bf16"]),
    ],
)
def test_among_kernels_the_gpus_own_preference_holds(
    tmp_path: Path, capability: int, precisions: list[str]
) -> None:
    for precision in ("bf16", "int4", "nvfp4", "fp8"):
        write_weights(tmp_path / f"w-{precision}", precision, **whole(precision))
        write_engine(tmp_path / precision, precision, "gpu")
    gpu = replace(SPARK, compute_capability=capability)
    assert order(tmp_path, replace(KERNELS_ALONE, gpu=gpu)) == precisions


def test_refusals_say_what_to_select(store: Path) -> None:
    on_a100 = profiles(Inventory.of(store), replace(KERNELS_ALONE, gpu=A100), GROUPS)
    reasons = {p.engine.directory.name: p.refusal or "" for p in on_a100}
    assert reasons["kernels-int4"] == ""
    assert "multiplies in fp8, for which A100" in reasons["kernels-fp8"]
    lost = {p.engine.directory.name: p.refusal or "" for p in profiles(Inventory.of(store), NO_GPU)}
    assert "no GPU that its driver shows; select an engine for target cpu" in lost["kernels-fp8"]


# What is served


def test_a_plan_that_does_not_load_falls_back_to_kernels_and_it_shows(store: Path) -> None:
    profile, selection = opened(store, WITH_KERNELS, failing=("plan",))
    assert (profile.engine.directory.name, selection.name) == ("kernels-fp8", KERNELS)
    assert selection.weights == str(store / "weights" / "fp8")
    [missed] = selection.fell_back_from
    assert (missed.name, missed.reason) == (PLAN, "the driver is too old")
    assert profile_info(selection)[3:] == ("true", PLAN)


def test_a_plan_that_was_found_wrong_falls_back_to_kernels_and_it_shows(store: Path) -> None:
    set_aside(store / "plan", WRONG)
    _, selection = opened(store, WITH_KERNELS)
    assert selection.name == KERNELS
    reasons = {missed.name: missed.reason for missed in selection.fell_back_from}
    assert "passes: wrong: denoise" in reasons[PLAN]
    assert "dgemma-build is not installed here to make one" in reasons["sm121"]
    assert profile_info(selection)[3] == "true"


def test_kernels_that_were_found_wrong_are_missed_only_where_no_plan_serves(store: Path) -> None:
    set_aside(store / "kernels-fp8", WRONG)
    assert opened(store, WITH_KERNELS)[1].fell_back_from == ()
    _, selection = opened(store, KERNELS_ALONE)
    assert selection.name == "torch-gpu-int4-tp1-pp1"
    assert KERNELS in [missed.name for missed in selection.fell_back_from]


def test_where_the_gpu_runs_nothing_every_reason_is_told(store: Path) -> None:
    broken = {"torch": "torch 2.13.0+cpu was built without CUDA"}
    _, selection = opened(
        store, replace(KERNELS_ALONE, runtimes={"onnxruntime": "1"}, broken=broken)
    )
    assert selection.directory == str(store / "host")
    missed = {m.name: m.reason for m in selection.fell_back_from}
    assert "does not import" in missed[PLAN]
    assert "was built without CUDA" in missed[KERNELS]


def test_what_this_gpu_has_no_units_for_is_not_missed_beside_what_it_runs(store: Path) -> None:
    _, selection = opened(store, replace(KERNELS_ALONE, gpu=A100))
    assert selection.name == "torch-gpu-int4-tp1-pp1"
    assert KERNELS not in [missed.name for missed in selection.fell_back_from]


def test_an_operator_may_name_or_prefer_kernels(store: Path) -> None:
    for given in ({"profile": KERNELS}, {"preferred": KERNELS}):
        _, selection = opened(store, WITH_KERNELS, **given)  # type: ignore[arg-type]
        assert (selection.name, selection.fell_back_from) == (KERNELS, ())
    _, selection = opened(store, KERNELS_ALONE, preferred=KERNELS)
    # Nothing was to be built instead, but the plan that is there does not fit.
    assert [missed.name for missed in selection.fell_back_from] == []
    with pytest.raises(ConfigurationError, match=r"has no units; .*these fit: torch-gpu-int4"):
        opened(store, replace(KERNELS_ALONE, gpu=A100), profile=KERNELS)


def test_kernels_are_rolled_back_and_forth(store: Path) -> None:
    assert "kernels-int4" in roll_engine_back(store, KERNELS_ALONE)
    assert opened(store, KERNELS_ALONE)[0].engine.directory.name == "kernels-int4"
    assert "kernels-fp8" in roll_engine_back(store, KERNELS_ALONE)
    assert opened(store, KERNELS_ALONE)[0].engine.directory.name == "kernels-fp8"


# What is built at a start

SPARKS = {"name": "sm121", "flavour": "tensorrt_rtx", "precisions": ["fp8", "nvfp4", "int4"]}
ANY = {"name": "gpu", "flavour": "torch"}


@dataclass(frozen=True)
class FakeBuilder(Builder):
    """Builds engines as stores have them in these tests, but those of `failing` targets."""

    command: tuple[str, ...] = ()
    missing: str = ""  # a target whose compiler is not there
    failing: str = ""
    kernels: Sequence[str] = ("bf16", "fp8", "int4", "nvfp4")
    calls: list[str] = field(default_factory=list)

    def output(self, *arguments: str) -> str:
        assert arguments == ("targets", "--json")
        why = {"why_not": "tensorrt_rtx does not import"}
        entries = (SPARKS, ANY | {"precisions": self.kernels})
        return json.dumps([t | why | {"buildable": t["name"] != self.missing} for t in entries])

    def run(self, *arguments: str, say: Callable[[str], None]) -> None:
        given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        target, precision = given["--target"], given["--precision"]
        self.calls.append(f"{target} {precision}")
        if target in self.failing.split():
            raise BuildFailed("the graph is not accepted")
        write_engine(Path(given["--out"]), precision, target)


def bare(root: Path, *precisions: str) -> Path:
    for precision in precisions:
        write_weights(root / "weights" / precision, precision, **whole(precision))
    return root


def test_where_there_is_no_compiler_kernels_are_built_and_the_reason_stays(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8", "int4"), FakeBuilder(missing="sm121")
    profile, selection = opened(root, KERNELS_ALONE, builder=made)
    assert made.calls == ["gpu fp8"]
    assert profile.engine.directory.name.startswith(f"gpu-fp8-torch-{stores.CUDA}-")
    assert (selection.name, selection.wanted) == (KERNELS, "sm121")
    [missed] = selection.fell_back_from
    assert "no engine for sm121, and none can be built here: tensorrt_rtx does not import" in (
        missed.reason
    )
    again = opened(root, KERNELS_ALONE, builder=made)[1]
    assert made.calls == ["gpu fp8"], "it is there"
    assert again.fell_back_from == selection.fell_back_from


def test_where_every_plan_fails_kernels_are_built_and_the_reasons_stay(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8", "int4"), FakeBuilder(failing="sm121")
    _, selection = opened(root, WITH_KERNELS, builder=made)
    assert made.calls == ["sm121 fp8", "sm121 int4", "gpu fp8"]
    assert selection.name == KERNELS
    reasons = [missed.reason for missed in selection.fell_back_from]
    assert reasons == ["cannot be built: the graph is not accepted"] * 2


def test_where_a_plan_is_built_kernels_are_not(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8"), FakeBuilder()
    assert opened(root, WITH_KERNELS, builder=made)[1].name == PLAN
    assert made.calls == ["sm121 fp8"]


def test_a_plan_that_does_not_load_has_kernels_built_before_the_host_serves(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8", "int4"), FakeBuilder()
    write_engine(root / "plan", "fp8", "sm121")
    write_engine(root / "host", "int4", "cpu")
    assert opened(root, WITH_KERNELS, builder=made)[1].name == PLAN
    assert made.calls == [], "nothing is built for what loads"
    _, selection = opened(root, WITH_KERNELS, builder=made, failing=("plan",))
    assert (selection.name, selection.wanted) == (KERNELS, PLAN)
    assert made.calls == ["gpu fp8"]


def test_a_plan_that_was_just_built_and_does_not_load_is_no_end(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8"), FakeBuilder()
    _, selection = opened(root, WITH_KERNELS, builder=made, failing=("sm121-",))
    assert made.calls == ["sm121 fp8", "gpu fp8"]
    assert (selection.name, selection.wanted) == (KERNELS, PLAN)


def test_where_neither_can_be_built_the_host_serves_and_says_all(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8"), FakeBuilder(failing="sm121 gpu")
    write_engine(root / "host", "int4", "cpu")
    _, selection = opened(root, WITH_KERNELS, builder=made)
    assert selection.name == "onnxruntime-cpu-int4-tp1-pp1"
    assert [missed.name for missed in selection.fell_back_from] == [PLAN, KERNELS]


@pytest.mark.parametrize(
    ("machine", "precisions", "built", "reason"),
    [
        (replace(KERNELS_ALONE, gpu=A100), ["fp8", "int4"], ["gpu int4"], "sm80 is not known"),
        (replace(KERNELS_ALONE, gpu=A100), ["fp8"], [], "multiplies in fp8, for which A100"),
        (replace(KERNELS_ALONE, gpu=A100), ["nvfp4"], [], "scales its weights in fp8, for which"),
        (KERNELS_ALONE, ["int4", "nvfp4"], ["gpu nvfp4"], "no engine for sm121, and none can be"),
        (
            replace(KERNELS_ALONE, gpu=replace(SPARK, compute_capability=75)),
            ["int4"],
            [],
            "has kernels for compute capabilities 80,",
        ),
        (replace(KERNELS_ALONE, runtimes={}), ["int4"], [], "needs torch that runs kernels"),
    ],
)
def test_kernels_are_built_only_of_what_this_gpu_runs(
    tmp_path: Path,
    machine: Machine,
    precisions: list[str],
    built: list[str],
    reason: str,
) -> None:
    root, made = bare(tmp_path / "store", *precisions), FakeBuilder(missing="sm121")
    # What is served where nothing else can be.
    write_engine(root / "host", "int4", "cpu")
    here = replace(machine, runtimes={**machine.runtimes, "onnxruntime": "1.32"})
    _, selection = opened(root, here, builder=made)
    assert made.calls == built
    assert any(reason in missed.reason for missed in selection.fell_back_from)


def test_where_kernels_take_no_weights_of_the_store_it_says_which_they_take(tmp_path: Path) -> None:
    root = bare(tmp_path / "store", "nvfp4")
    write_engine(root / "host", "int4", "cpu")
    made = FakeBuilder(missing="sm121", kernels=("bf16", "int4"))
    _, selection = opened(root, KERNELS_ALONE, builder=made)
    assert made.calls == []
    assert any(
        "takes bf16 or int4 weights, and those of the store are nvfp4;" in missed.reason
        for missed in selection.fell_back_from
    )


def test_kernels_that_are_set_aside_are_not_built_again(tmp_path: Path) -> None:
    root, made = bare(tmp_path / "store", "fp8"), FakeBuilder(missing="sm121")
    profile, _ = opened(root, KERNELS_ALONE, builder=made)
    set_aside(profile.engine.directory, WRONG)
    with pytest.raises(ConfigurationError, match="passes: wrong: denoise"):
        opened(root, KERNELS_ALONE, builder=made)
    assert made.calls == ["gpu fp8"]
