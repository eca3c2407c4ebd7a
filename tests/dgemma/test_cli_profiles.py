from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dgemma import cli_profiles
from dgemma.cli import app
from dgemma.machine import Machine
from dgemma.profiles.locks import InUse
from tests.dgemma.profiles.stores import (
    GROUPS,
    KERNELS_ALONE,
    NO_GPU,
    flip,
    whole,
    write_engine,
    write_weights,
)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU, and nothing set."""
    monkeypatch.setattr(Machine, "here", lambda: NO_GPU)
    for name in ("MODEL_PATH", "CACHE_PATH", "MODEL_PROFILE"):
        monkeypatch.delenv(f"NIM_{name}", raising=False)
    monkeypatch.delenv("DGEMMA_CHECKPOINT", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three generations of int4, fp32, a plan, and weights for nothing."""
    for age in range(3):
        write_engine(tmp_path / f"int4-{age}", "int4", written=1e9 - age)
    write_engine(tmp_path / "fp32")
    write_engine(tmp_path / "plan", "fp8", "sm121")
    write_weights(tmp_path / "nvfp4", "nvfp4")
    return tmp_path


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["profiles", *map(str, arguments)], input=stdin)


def listed(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_the_table_says_what_fits_what_is_served_and_what_can_go(store: Path) -> None:
    out = run(store).stdout
    assert "no GPU" in out.splitlines()[0]
    [fp32] = [line for line in out.splitlines() if line.startswith("onnxruntime-cpu-fp32")]
    assert fp32.rstrip().endswith(" compatible")
    [plan] = [line for line in out.splitlines() if line.startswith("tensorrt_rtx-sm121-fp8")]
    assert "incompatible: " in plan
    assert "selected onnxruntime-cpu-fp32-tp1-pp1: the preferred one" in out
    assert "nothing refers to 2 of them; --prune frees " in out


def test_json_has_the_same(store: Path) -> None:
    found = listed(store)
    profiles = {p["engine"].rpartition("/")[2]: p for p in found["profiles"]}
    assert found["selected"] == profiles["fp32"]["id"]
    assert profiles["plan"]["compatible"] is False and profiles["plan"]["reason"]
    kept = {d["directory"].rpartition("/")[2]: d["kept"] for d in found["directories"]}
    assert kept == {
        **dict.fromkeys(("int4-0", "int4-1", "fp32", "plan"), True),
        **dict.fromkeys(("int4-2", "nvfp4"), False),
    }
    gone = [d["bytes"] for d in found["directories"] if not d["kept"]]
    assert found["prune_frees_bytes"] == sum(gone) > 0


def test_kernels_are_listed_as_what_any_gpu_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tmp_path / "w", "fp8", **whole("fp8"))
    write_engine(tmp_path / "kernels", "fp8", "gpu", geometry=GROUPS)
    [line] = [line for line in run(tmp_path).stdout.splitlines() if line.startswith("torch-gpu")]
    assert "incompatible: " in line  # the table has no room for the rest
    [refused] = listed(tmp_path)["profiles"]
    assert "has kernels for GPUs, and this machine has no GPU" in refused["reason"]
    monkeypatch.setattr(Machine, "here", lambda: KERNELS_ALONE)
    found = listed(tmp_path)
    [profile] = found["profiles"]
    assert found["selected"] == profile["id"] and profile["compatible"]
    assert profile["runtime"] == {
        "flavour": "torch",
        "version": "2.13.0+cu130",
        "compute_capability": None,
    }
    assert profile["weights"] == str(tmp_path / "w")
    assert {d["kept"] for d in found["directories"]} == {True}


def test_the_place_is_that_of_the_variables(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_CACHE_PATH", str(store))
    assert listed()["store"] == str(store)
    monkeypatch.setenv("NIM_MODEL_PATH", str(store / "fp32"))
    assert len(listed()["profiles"]) == 1
    monkeypatch.setenv("NIM_MODEL_PATH", str(store / "nowhere"))
    result = run()
    assert result.exit_code == 2 and "nowhere: no engine here" in result.stderr


def test_a_named_profile_is_what_would_be_served(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_MODEL_PROFILE", "int4-2")
    found = listed(store)
    assert found["why"] == "named by NIM_MODEL_PROFILE"
    kept = {d["directory"].rpartition("/")[2]: d["because"] for d in found["directories"]}
    assert kept["int4-2"] == "would be served here"
    monkeypatch.setenv("NIM_MODEL_PROFILE", "int5")
    assert "'int5' is not in" in listed(store)["why"] and listed(store)["selected"] is None


def test_a_preferred_precision_would_be_served_where_it_is(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for preferred, expected in (("int4", "int4"), ("nvfp4", "fp32"), ("", "fp32")):
        monkeypatch.setenv("DGEMMA_PREFERRED_PROFILE", preferred)
        found = listed(store)
        [chosen] = [p for p in found["profiles"] if p["id"] == found["selected"]]
        assert chosen["precision"] == expected


def test_a_checkpoint_of_another_geometry_fits_nothing(store: Path, demo_checkpoint: Path) -> None:
    found = listed(store, "--checkpoint", demo_checkpoint)
    assert found["selected"] is None
    assert all("another geometry" in p["reason"] for p in found["profiles"])


def test_a_flipped_bit_is_seen_with_verify(store: Path) -> None:
    flip(store / "fp32" / "weights.safetensors")
    assert listed(store)["selected"] is not None
    found = listed(store, "--verify")
    [broken] = [d for d in found["directories"] if d["directory"].endswith("/fp32")]
    assert "its content has changed" in broken["because"] and not broken["kept"]


def test_an_empty_store(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "nothing is selected" in result.stdout and "no engine here" in result.stdout


def names(store: Path) -> set[str]:
    return {path.name for path in store.iterdir()}


def test_prune_removes_what_it_said_and_nothing_else(store: Path) -> None:
    before = names(store)
    dry = run(store, "--prune", "--dry-run")
    assert f"would remove {store}/int4-2" in dry.stderr and "would be freed" in dry.stderr
    assert names(store) == before
    result = run(store, "--prune", "--yes")
    assert result.exit_code == 0 and "removed 2, freed " in result.stderr
    assert before - names(store) == {"int4-2", "nvfp4"}
    assert "nothing to remove" in run(store, "--prune", "--yes").stderr


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("", False)])
def test_prune_asks(store: Path, monkeypatch: pytest.MonkeyPatch, answer: str, gone: bool) -> None:
    monkeypatch.setattr(cli_profiles, "_somebody_is_there", lambda: True)
    result = run(store, "--prune", stdin=answer)
    assert "Remove 2 directories, " in result.stderr
    assert ("nvfp4" not in names(store)) is gone


def test_prune_does_not_wait_for_an_answer_that_nobody_can_give(store: Path) -> None:
    before = names(store)
    result = run(store, "--prune")
    assert result.exit_code == 2 and "add --yes" in result.stderr
    assert names(store) == before


def test_what_comes_into_use_while_prune_asks_is_left(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use, remove = InUse(), cli_profiles.remove

    def begin_to_use(found: Any) -> None:
        if found.directory.name == "nvfp4":
            in_use.add(found.directory)
        remove(found)

    monkeypatch.setattr(cli_profiles, "remove", begin_to_use)
    result = run(store, "--prune", "--yes")
    assert result.exit_code == 1
    assert "nvfp4: is in use" in result.stderr and "removed 1, 1 are left" in result.stderr
    assert {"nvfp4"} <= names(store)
    in_use.close()


def test_it_is_installed_under_the_name_that_nim_has(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command: Callable[[], None] = cli_profiles.main
    monkeypatch.setattr("sys.argv", ["list-model-profiles", str(store)])
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 0
    assert "selected onnxruntime-cpu-fp32-tp1-pp1" in capsys.readouterr().out
