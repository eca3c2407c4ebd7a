"""What becomes of an engine by the way in which its verification ended."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma_build.ensure import verification as module
from dgemma_build.ensure.verification import Engine, verify

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
