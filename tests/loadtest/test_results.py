from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.evaluate import runs
from dgemma_loadtest.evaluate.results import (
    SCHEMA_FILE,
    Cell,
    Crossover,
    Figures,
    Results,
    json_schema,
    merge,
    read,
)
from dgemma_loadtest.run_file import Server
from tests.loadtest import modelled_run

SHARED = Path(__file__).parents[2] / "docs" / "measurements" / "load"


def cell(**changes: object) -> Cell:
    fields = {
        "platform": "h100",
        "precision": "fp8",
        "model": "diffusion",
        "tenancy": "single",
        "users": 4,
        "basis": "measured",
        "how": "service",
        "figures": Figures(tokens_per_s=1000.0),
    }
    return Cell.model_validate(fields | changes)


def results(*cells: Cell, day: int = 1) -> Results:
    return Results(day=date(2026, 1, day), workload="prompts of 512 tokens", cells=cells)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = Crossover(
        platform="h100",
        precision="fp8",
        basis="simulated",
        how="formula",
        reading="sum",
        steps="adaptive",
        users=None,
    )
    written = results(cell()).model_copy(update={"crossovers": (found,)})
    written.write(tmp_path / "results.json")
    assert read(tmp_path) == read(tmp_path / "results.json") == written


def test_the_shared_schema_is_the_one_that_is_read() -> None:
    assert (SHARED / SCHEMA_FILE).read_text() == json_schema()


def test_shared_files_are_results() -> None:
    for path in SHARED.glob("*.json"):
        if path.name != SCHEMA_FILE:
            read(path)


def test_merging_keeps_every_line_once() -> None:
    mine, theirs = cell(users=1), cell(users=2, platform="dgx-spark")
    merged = merge([results(mine, day=3), results(mine, theirs, day=2)])
    assert merged.cells == (mine, theirs)
    assert merged.day == date(2026, 1, 3)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"basis": "guessed"}, "basis"), ({"users": 0}, "users"), ({"more": 1}, "more")],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, wrong: dict[str, object], field: str
) -> None:
    content = json.loads(results(cell()).model_dump_json())
    content["cells"][0] |= wrong
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"cells\.0\.{field}"):
        read(path)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.json")


def test_a_run_becomes_a_line_for_every_stage(tmp_path: Path) -> None:
    made = modelled_run.sweep(tmp_path / "run")
    modelled_run.sweep(made / "baseline", "autoregressive")
    cells = runs.cells(made)
    assert [c.users for c in cells] == [*modelled_run.SWEEP] * 2
    assert {(c.platform, c.basis) for c in cells} == {("h100", "simulated")}
    assert [c.model for c in cells] == ["diffusion"] * 7 + ["autoregressive"] * 7
    for each in cells:
        assert each.figures.tokens_per_s and each.figures.usd_per_million
        usd = 2.95 / 3600 / each.figures.tokens_per_s * 1e6
        assert each.figures.usd_per_million == pytest.approx(usd)


def test_a_run_that_does_not_tell_its_platform_has_to_be_told(tmp_path: Path) -> None:
    made = modelled_run.sweep(tmp_path / "run", server=Server("openai"))
    with pytest.raises(InputError, match="NAME=DIRECTORY"):
        runs.cells(made)
    assert runs.cells(made, "rtx-5090")[0].platform == "rtx-5090"
