"""Engines for any GPU, which are nothing but a manifest; what makes another one of the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from dgemma.engine.kernel_sources import sources, sources_digest
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import Geometry
from dgemma.manifest import FILE_NAME, Manifest, Runtime
from dgemma.precision import policy_of
from dgemma_build.cli import app
from dgemma_build.engine import builder_digest
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.quantized import whole_groups
from tests.plans import write_store


def build(out: Path, *arguments: object, target: str = "gpu") -> Result:
    given = ["engine", "--target", target, *map(str, arguments), "--out", str(out)]
    return CliRunner().invoke(app, given, env={"COLUMNS": "300"})


def only_the_manifest(directory: Path) -> Manifest:
    assert [path.name for path in directory.iterdir()] == [FILE_NAME]
    manifest = Manifest.read(directory)
    assert manifest.runtime == Runtime("torch", torch.__version__)
    assert (manifest.target, manifest.graph, manifest.files) == ("gpu", "", {})
    assert (manifest.weights, manifest.bindings, manifest.profiles) == ((), (), ())
    assert manifest.versions.keys() == {"torch"}
    assert manifest.source == sources_digest()
    return manifest


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
def test_of_a_geometry(tmp_path: Path, precision: str) -> None:
    result = build(tmp_path / "e", "--geometry", DEFAULT, "--precision", precision)
    assert result.exit_code == 0, result.output
    assert f"gpu {precision} engine built" in result.output
    made = only_the_manifest(tmp_path / "e")
    assert (made.geometry, made.policy) == (named_geometry(DEFAULT), policy_of(precision))
    again = build(tmp_path / "e", "--geometry", DEFAULT, "--precision", precision)
    assert "is up to date" in again.output


def test_of_a_checkpoint_it_reads_the_geometry_alone(tmp_path: Path, demo_checkpoint: Path) -> None:
    bare = tmp_path / "checkpoint"
    bare.mkdir()
    (bare / "config.json").write_bytes((demo_checkpoint / "config.json").read_bytes())
    options = ("--precision", "int4", "--policy", "all")
    assert build(tmp_path / "e", "--checkpoint", bare, *options).exit_code == 0
    made = only_the_manifest(tmp_path / "e")
    assert made.geometry == Geometry.from_checkpoint(demo_checkpoint)
    assert made.policy == policy_of("int4", "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "e"]


def test_of_a_store_it_takes_precision_and_policy(tmp_path: Path) -> None:
    store = write_store(tmp_path, random_network(whole_groups()), "int4")
    assert build(tmp_path / "e", "--store", store).exit_code == 0
    made = only_the_manifest(tmp_path / "e")
    assert (made.precision, made.policy) == ("int4", policy_of("int4"))
    assert made.geometry == whole_groups()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--geometry", DEFAULT, "--precision", "fp32"), "'fp32' is not built for gpu; known: bf1"),
        (("--geometry", DEFAULT, "--max-rows", 8), "are those of a plan; an engine for gpu has"),
        (("--geometry", DEFAULT, "--max-context", 512), "any number of rows and tokens"),
        (("--checkpoint", "{demo}"), "'fp32' is not built for gpu; known: bf16, fp8, int4, nvfp4"),
        (
            ("--checkpoint", "{demo}", "--precision", "bf16", "--weights-as-constants"),
            "weights inside are those of a plan",
        ),
    ],
)
def test_what_only_a_plan_has_is_refused(
    tmp_path: Path, demo_checkpoint: Path, options: tuple[object, ...], message: str
) -> None:
    given = [str(option).format(demo=demo_checkpoint) for option in options]
    result = build(tmp_path / "e", *given)
    assert result.exit_code == 2 and message in result.output + result.stderr
    assert list(tmp_path.iterdir()) == []


# What makes it another engine


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "kernels" / "deep").mkdir(parents=True)
    for name in ("kernels/experts.py", "kernels/deep/tiles.py", "torch_engine.py", "batch.py"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["kernels/experts.py", "kernels/deep/tiles.py", "torch_engine.py"])
def test_other_sources_are_another_engine(room: Path, name: str) -> None:
    before = sources_digest(room)
    (room / name).write_text("changed")
    changed = sources_digest(room)
    (room / name).rename(room / "kernels" / "moved.py")
    assert len({before, changed, sources_digest(room)}) == 3


def test_what_kernels_do_not_depend_on_changes_nothing(room: Path) -> None:
    before = sources_digest(room)
    (room / "batch.py").write_text("changed")
    (room / "kernels" / "__pycache__").mkdir()
    (room / "kernels" / "__pycache__" / "experts.pyc").write_text("compiled")
    assert sources_digest(room) == before


def test_the_shipped_sources_are_found_and_nothing_of_them_imported() -> None:
    found = {path.name for path in sources()}
    assert {"chip.py", "operands.py", "variant.py"} <= found
    assert builder_digest("torch") == sources_digest() != builder_digest("tensorrt_rtx")
    code = "import sys, dgemma_build.engine as e; e.builder_digest('torch'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    imported = done.stdout.split()
    assert "dgemma_build.any_gpu" in imported and "triton" not in imported


def test_a_build_with_other_kernels_replaces_the_engine(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engine"
    monkeypatch.setattr("dgemma_build.engine.sources_digest", lambda: sources_digest(room))
    assert "engine built" in build(out, "--geometry", DEFAULT).output
    assert "is up to date" in build(out, "--geometry", DEFAULT).output
    (room / "torch_engine.py").write_text("changed")
    assert "engine built" in build(out, "--geometry", DEFAULT).output
    assert Manifest.read(out).source == sources_digest(room)
