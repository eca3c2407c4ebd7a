"""The page of a run, its gates and what a run that was broken off still gets."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.recording import FILE
from dgemma_loadtest.report.knee import overtaken
from dgemma_loadtest.report.run_page import report
from tests.loadtest import modelled_run

UNIT = re.compile(r"seconds|%|tokens/s|per second|users|steps|rows of passes|stage or|requests")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = modelled_run.sweep(tmp_path_factory.mktemp("runs") / "sweep")
    modelled_run.sweep(made / "baseline", "autoregressive")
    report(made)
    return made


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = modelled_run.tenants(tmp_path_factory.mktemp("runs") / "tenants")
    report(made)
    return made


def figures(page: str) -> dict[str, ElementTree.Element]:
    """The plots by their names."""
    found = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    elements = [ElementTree.fromstring(text.replace("&nbsp;", " ")) for text in found]
    return {element.attrib["id"]: element for element in elements}


def test_a_sweep_has_its_plots(sweep: Path) -> None:
    found = figures((sweep / "report.html").read_text())
    assert set(found) == {"ttfb", "block", "e2e", "sweep", "sweep-latency", "steps", "waste"}
    labels = {item.text or "".join(item.itertext()) for item in found["sweep"].iter("li")}
    assert {"this service", "baseline"} <= labels
    marks = [text.text or "" for text in found["sweep"].iter("text") if text.get("class") == "said"]
    assert any(re.fullmatch(r"the baseline overtakes: [\d.]+", mark) for mark in marks), marks


def test_where_a_curve_is_overtaken() -> None:
    ours = [(1.0, 100.0), (4.0, 200.0), (16.0, 200.0)]
    assert overtaken(ours, [(1.0, 50.0), (4.0, 100.0), (16.0, 400.0)]) == pytest.approx(8)
    assert overtaken(ours, [(1.0, 200.0), (4.0, 300.0), (16.0, 400.0)]) is None
    assert overtaken(ours, [(1.0, 50.0), (16.0, 100.0)]) is None


def test_tenants_have_theirs(tenants: Path) -> None:
    page = (tenants / "report.html").read_text()
    assert "service-beside" in figures(page)
    for said in ("Jain&#39;s index", "service gap", "longest wait", "Victim steady"):
        assert said in page


def test_every_plot_has_a_title_and_axes_with_units(sweep: Path, tenants: Path) -> None:
    for directory in (sweep, tenants):
        for name, figure in figures((directory / "report.html").read_text()).items():
            axes = [e.text or "" for e in figure.iter("text") if e.get("class") == "axis-name"]
            assert len(axes) == 2, name
            assert all(UNIT.search(axis) for axis in axes), (name, axes)
            title = figure.find("figcaption/strong")
            assert title is not None and title.text, name
            kind = figure.find("figcaption/span")
            assert kind is not None and kind.text == "simulated", name


def test_the_page_needs_nothing_from_elsewhere(sweep: Path) -> None:
    page = (sweep / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*(?!["']?data:)""", page)
    assert not re.search(r"<script|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page


def test_the_table_has_a_line_for_every_stage(sweep: Path) -> None:
    lines = list(csv.DictReader((sweep / "summary.csv").read_text().splitlines()))
    assert [line["stage"] for line in lines] == [
        modelled_run.label(users) for users in modelled_run.SWEEP
    ]
    rates = [float(line["tokens_per_s"]) for line in lines]
    assert rates[0] < rates[2]


def test_a_missed_objective_fails_the_build(sweep: Path, tmp_path: Path) -> None:
    suites = ElementTree.parse(sweep / "junit.xml").getroot()
    failed = [case for case in suites.iter("testcase") if case.find("failure") is not None]
    assert int(suites.attrib["failures"]) == len(failed) > 0
    assert {case.attrib["name"] for case in failed} == {"slo ttfb=0.5,e2e=5"}
    easy = modelled_run.sweep(tmp_path / "easy", slo={"ttfb": 1000.0})
    assert not report(easy, good_share=0.3).failed


def test_a_queue_that_is_not_fair_fails_the_build(tmp_path: Path) -> None:
    fair = modelled_run.tenants(tmp_path / "fair", slo={})
    unfair = modelled_run.tenants(tmp_path / "unfair", "fcfs", slo={})
    assert not report(fair).failed
    failed = [gate for gate in report(unfair).gates if gate.outcome == "failed"]
    assert [(gate.stage, gate.name) for gate in failed] == [("beside", "service gap")]


def test_a_run_that_was_broken_off_is_reported(tmp_path: Path) -> None:
    """The last line is torn, a stage has no window, and the state says so."""
    made = modelled_run.sweep(tmp_path / "torn", state="interrupted", stages=(), client=None)
    lines = (made / FILE).read_bytes()
    (made / FILE).write_bytes(lines[: len(lines) // 3])
    done = report(made)
    page = done.path.read_text()
    complete = next(gate for gate in done.gates if gate.name == "complete")
    assert (complete.outcome, complete.said) == ("skipped", "the run is interrupted")
    assert "This run is interrupted" in page
    assert {"ttfb", "e2e", "steps"} <= set(figures(page))


def test_a_baseline_that_was_broken_off_is_told(tmp_path: Path) -> None:
    made = modelled_run.tenants(tmp_path / "run", slo={})
    modelled_run.tenants(made / "baseline", state="interrupted", slo={})
    done = report(made)
    skipped = [gate.name for gate in done.gates if gate.outcome == "skipped"]
    assert skipped == ["baseline: complete"]
    assert "The baseline&#39;s run is interrupted." in done.path.read_text()


def test_a_run_without_any_answer_is_reported(tmp_path: Path) -> None:
    made = modelled_run.write(tmp_path / "none", [], {"name": "none"}, state="interrupted")
    assert figures(report(made).path.read_text()) == {}


def test_no_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        report(tmp_path)


def test_what_servers_say_is_text_and_not_markup(tmp_path: Path) -> None:
    made = modelled_run.sweep(tmp_path / "odd", target="http://x/<script>alert(1)</script>")
    assert "<script>" not in report(made).path.read_text()
