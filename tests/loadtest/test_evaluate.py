from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgemma_loadtest.cli import app
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.evaluate.results import Results, read
from tests.loadtest import modelled_run
from tests.loadtest.browser import in_a_browser, opened


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate")
    run = modelled_run.sweep(out / "run")
    arguments = ["evaluate", "--out", str(out), "--platforms", "h100,dgx-spark", "--users", "1,16"]
    ran = CliRunner().invoke(app, [*arguments, "--from", f"h200={run}"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "h100-fp8: autoregressive overtakes at" in ran.output
    return out


@pytest.fixture(scope="module")
def results(made: Path) -> Results:
    return read(made)


def test_every_figure_says_what_it_is(results: Results) -> None:
    assert {cell.basis for cell in results.cells} == {"simulated", "published"}
    for cell in results.cells:
        assert (cell.reading is not None) == (cell.how == "virtual time")


def test_the_matrix_is_whole(results: Results) -> None:
    modelled = {
        (c.platform, c.tenancy, c.model, c.reading) for c in results.cells if c.reading is not None
    }
    assert len(modelled) == 2 * 2 * 2 * 2
    assert {c.users for c in results.cells if c.reading and c.tenancy == "single"} == {1, 16}


def test_tenants_are_served_fairly_only_by_a_fair_queue(results: Results) -> None:
    queues = [c for c in results.cells if c.tenancy == "multi" and c.model == "diffusion"]
    for cell in queues:
        found = cell.figures
        assert found.jain is not None and found.service_gap is not None
        assert found.service_gap_bound is not None and found.victim_p99_ratio is not None
        assert (found.service_gap <= found.service_gap_bound) == (cell.policy == "fair")
    assert {cell.policy for cell in queues} == {"fair", "fcfs"}


def test_the_crossover_has_both_readings_and_a_range_over_steps(results: Results) -> None:
    h100 = [c for c in results.crossovers if c.platform == "h100"]
    assert {(c.reading, c.steps) for c in h100} == {
        (reading, steps)
        for reading in ("sum", "max")
        for steps in ("adaptive", "16 fixed", "48 fixed")
    }
    for found in h100:
        if found.steps == "adaptive":
            assert found.low is not None and found.users is not None and found.high is not None
            assert found.low < found.users < found.high


def test_the_page_says_so(made: Path) -> None:
    page = (made / "evaluation.html").read_text()
    for said in (
        "Nothing here was measured on a GPU",
        "no agreement claimed",
        "does not agree",
        "service with the simulated engine",
        'id="crossover"',
        'id="total-h100-fp8"',
        'id="total-h200-',
        'id="cost"',
    ):
        assert said in page, said
    assert not re.search(r"<script|@import|url\(", page)


@in_a_browser
def test_a_browser_has_nothing_to_say(made: Path, tmp_path: Path) -> None:
    document, console = opened(made / "evaluation.html", tmp_path)
    assert console == []
    assert document.count("<figure") >= 4


def test_results_of_others_are_merged(made: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--out", str(tmp_path), "--platforms", "rtx-5090", "--users", "1"]
    ran = CliRunner().invoke(
        app, [*arguments, "--tenancy", "single", "--from", str(made / "results.json")]
    )
    assert ran.exit_code == 0, ran.output
    merged = read(tmp_path)
    assert set(read(made).cells) < set(merged.cells)
    assert {"rtx-5090", "h100", "h200"} <= {cell.platform for cell in merged.cells}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--platforms", "h300"),
        ("--tenancy", "some"),
        ("--precisions", "fp7"),
        ("--users", "0,4"),
        ("--users", "many"),
        ("--steps", "many"),
        ("--price", "h100"),
        ("--price", "h300=2"),
        ("--from", "nowhere.json"),
    ],
)
def test_an_option_that_means_nothing_is_refused(option: str, value: str, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["evaluate", "--out", str(tmp_path), option, value])
    assert isinstance(ran.exception, InputError)
    name = option.strip("-").removesuffix("s")
    assert re.match(rf"{name}s?:", str(ran.exception)), ran.exception
    assert not list(tmp_path.iterdir())
