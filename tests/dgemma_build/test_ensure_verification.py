"""What becomes of an engine by the way in which its verification ended."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.profiles.layout import REPORT
from dgemma_build.ensure import verification as module
from dgemma_build.ensure.verification import Engine, verified_before, verify
from tests.dgemma_build.verify.engines import cpu_engine

SAY = print


def ends(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Verifications run this program instead; REPORT in it is where the report goes."""

    def command(engine: Engine, report: Path) -> list[str]:
        return [sys.executable, "-c", program.replace("REPORT", repr(str(report)))]

    monkeypatch.setattr(module, "_command", command)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "engine").mkdir()
    return Engine(tmp_path / "engine", None, runs_here=True)


def test_an_engine_that_ends_its_process_is_wrong(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(monkeypatch, "import os; print('loading', flush=True); os.kill(os.getpid(), 11)")
    assert verify(engine, SAY) == "the process that ran it ended by SIGSEGV: loading"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_somebody_else_has_ended_says_nothing_of_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ends(monkeypatch, f"import os; os.kill(os.getpid(), {int(number)})")
    with pytest.raises(ConfigurationError, match=r"could not be verified .* run this again"):
        verify(engine, SAY)


def test_nor_does_a_mistake_in_asking(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, "raise SystemExit('error: no such directory of a weight store')")
    with pytest.raises(ConfigurationError, match="no such directory of a weight store"):
        verify(engine, SAY)


def test_a_report_of_the_same_graph_that_says_enough_is_believed(tmp_path: Path) -> None:
    made = Path(shutil.copytree(cpu_engine("int4"), tmp_path / "engine"))
    engine = Engine(made, None, runs_here=True)
    assert verified_before(engine) is None
    lines: list[str] = []
    assert verify(engine, lines.append) is None and lines
    report = made / REPORT
    assert verified_before(engine) is not None
    found = json.loads(report.read_text())
    for changes in ({"executed": False}, {"passed": False}):
        report.write_text(json.dumps(found | changes))
        assert verified_before(engine) is None, changes
    report.write_text(json.dumps(found | {"executed": False}))
    assert verified_before(Engine(made, None, runs_here=False)) is not None
    report.write_text(json.dumps(found | {"engine": found["engine"] | {"graph_sha256": "other"}}))
    assert verified_before(engine) is None
    report.write_text("{")
    assert verified_before(engine) is None
