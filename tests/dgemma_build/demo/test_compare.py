from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import stdev

import pytest
import typer
from typer.testing import CliRunner

from dgemma_build.demo import compare, evaluate
from dgemma_build.demo.compare import Difference, Outcome, cells


def test_a_difference_is_of_pairs_and_not_of_means() -> None:
    hard = [9.0, 1.0, 5.0, 7.0]  # tasks differ much more than engines do
    assert Difference.of([x + 1 for x in hard], hard) == Difference(1.0, 0.0)
    ours = [10.0, 1.0, 5.0, 9.0]
    pairs = [our - their for our, their in zip(ours, hard, strict=True)]
    found = Difference.of(ours, hard)
    assert found.mean == 0.75
    assert found.margin == pytest.approx(1.96 * stdev(pairs) / 2)


def test_a_line_says_what_changed_against_the_first_engine() -> None:
    first = Outcome((True, True, False, True), (2.0, 4.0, 6.0, 4.0), passes=10, reruns=0)
    ours = Outcome((True, False, False, True), (3.0, 4.0, 6.0, 4.0), passes=16, reruns=4)
    assert cells(first, None) == ("75.0%", "", "4.00", "", "0.0%")
    assert cells(ours, first) == ("50.0%", "-25.0 ± 49.0", "4.25", "+6.2% ± 12.2%", "25.0%")


@pytest.mark.parametrize("command", [evaluate.main, compare.main])
def test_an_engine_of_another_schema_is_an_error_in_a_line(
    command: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 1}))
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--engine", str(tmp_path)])
    assert result.exit_code == 2
    assert "manifest.json" in result.output and "schema version 1" in result.output
    assert result.output.count("\n") == 1
