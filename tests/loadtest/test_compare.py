from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgemma_loadtest import recording
from dgemma_loadtest.cli import app
from dgemma_loadtest.compare import Difference, compare
from dgemma_loadtest.records import Record
from tests.loadtest import modelled_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one kind, with other seeds."""
    directory = tmp_path_factory.mktemp("compare")
    return [modelled_run.sweep(directory / str(seed), seed=seed) for seed in (1, 2)]


def four_users(run: Path) -> list[Record]:
    return [r for r in recording.read(run) if r.stage == "4 users"]


def slower(records: list[Record], factor: float) -> list[Record]:
    """Every answer takes so much longer."""
    return [
        replace(
            r,
            ended_s=r.scheduled_s + factor * (r.ended_s - r.scheduled_s),
            chunks=tuple(
                c._replace(at_s=r.scheduled_s + factor * (c.at_s - r.scheduled_s)) for c in r.chunks
            ),
        )
        for r in records
    ]


def differing(found: list[Difference]) -> set[str]:
    return {d.what for d in found if d.differs}


def test_two_runs_of_the_same_differ_by_noise(runs: list[Path]) -> None:
    assert differing(compare(*map(four_users, runs))) == set()


def test_what_is_slower_is_found_and_what_is_not_is_not(runs: list[Path]) -> None:
    before, after = map(four_users, runs)
    found = compare(before, slower(after, 1.8))
    assert {"first block, p50", "tokens/s of a user, p50"} <= differing(found)
    assert not {"steps of a block, mean", "requests that failed"} & differing(found)
    first = next(d for d in found if d.what == "first block, p50")
    assert first.ratio is not None and first.ratio.low is not None and first.ratio.low > 1


def test_a_run_is_the_same_as_itself(runs: list[Path]) -> None:
    records = four_users(runs[0])
    for found in compare(records, records):
        assert found.a == found.b
        assert found.p == 1 and found.differs is False


def test_of_a_handful_nothing_is_said(runs: list[Path]) -> None:
    records = [r for r in four_users(runs[0]) if not r.warmup][:5]
    assert {found.differs for found in compare(records, records)} == {None}


def test_the_command_prints_a_verdict_for_each(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "compared.html"
    ran = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(page)])
    assert ran.exit_code == 0, ran.output
    assert "noise" in ran.output and "Permutation test" in ran.output
    assert "Differences" in page.read_text()
