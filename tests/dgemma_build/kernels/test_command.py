from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dgemma.engine.kernels import compiled
from dgemma_build.cli import app
from tests.dgemma.test_targets import ENTRY, write
from tests.dgemma_build.kernels.unfit import fit, unfit


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["kernels", *map(str, arguments)], env={"COLUMNS": "200"})


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line


def test_what_is_wrong_is_said_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "all_variants", unfit)
    result = run("--target", "sm90", "--json", tmp_path / "kernels.json")
    assert result.exit_code == 1, result.output
    report = json.loads((tmp_path / "kernels.json").read_text())
    found: dict[str, Any] = {one["kernel"]: one for one in report["kernels"]}
    problems = {name: one["problem"] for name, one in found.items() if one["problem"]}
    expected = {
        "spills": "without a reason",
        "too large": "takes 393216 bytes of shared memory, the chip has 232448",
        "of a type that it cannot sum up": "does not compile: ",
        "lacks an argument": "the kernel's arguments are x, out, SIZE, but x, out are described",
        "ends its process": "ended its process",
    }
    assert problems.keys() == expected.keys()
    for name, part in expected.items():
        assert part in problems[name]
        assert part in result.stdout and f"90 {name}: " in result.stdout
        assert "problem" in line_of(result.stdout, f"{name}  ")

    assert found["multiplies"]["resources"]["matrix"] == "wgmma"
    assert found["multiplies"]["resources"]["arch"] == "sm_90a"
    spilled = found["spills"]["resources"]
    assert spilled["registers"] == 255 and spilled["spill_load_bytes"] > 0
    assert any("serialized" in warning for warning in spilled["warnings"])
    for excused in ("spills for a reason", "spills where it does not matter"):
        assert found[excused]["resources"]["spill_store_bytes"] > 0
    assert "as a test of it" in line_of(result.stdout, "spills for a reason")


def test_kernels_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "all_variants", fit)
    result = run("--target", "sm120", "--target", "sm80")
    assert result.exit_code == 0, result.output
    assert "sm120: 2 kernels, none with a problem; 101376 bytes shared" in result.stdout
    assert "sm80: 2 kernels" in result.stdout and "sm90" not in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.strip().startswith("multiplies")]
    assert len(lines) == 2 and all("mma.sync" in line and "good" in line for line in lines)
    assert "kernels 100 %" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--target", "cpu"), "target 'cpu' is no GPU"),
        (("--target", "sm33"), "target 'sm33' is not known; known: cpu, gpu, sm80"),
        (("--geometry", "gemma"), "geometry 'gemma' is not known"),
        (("--json", "/nowhere/kernels.json"), "/nowhere is no directory"),
    ],
)
def test_mistakes_are_a_sentence(arguments: tuple[str, ...], part: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert part in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_target_without_kernels_is_left_out_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ENTRY)  # sm86
    monkeypatch.setattr(compiled, "all_variants", lambda geometry, chip: ())
    assert run("--targets", tmp_path).exit_code == 0
    result = run("--targets", tmp_path, "--target", "sm86")
    assert result.exit_code == 2
    assert "compute capability 86 has no kernels; known: 80, 89, 90" in result.stderr


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, compiled.__name__)
    monkeypatch.setitem(sys.modules, "triton", None)
    result = run()
    assert result.exit_code == 2
    assert "pip install triton==" in result.stderr
