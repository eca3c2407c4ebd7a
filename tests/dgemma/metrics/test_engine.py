from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgemma.engine.kernel_sources import sources_digest
from dgemma.metrics.engine import MEASURED, NEVER, REPORT, engine_info, verification
from dgemma.profiles.selection import Selection
from tests.dgemma.engine.fake_engine import geometry_of
from tests.plans import write_kernels

DIGEST = "ab" * 32


def report(**changes: Any) -> dict[str, Any]:
    return {"executed": True, "passed": True, "engine": {"graph_sha256": DIGEST}, **changes}


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (report(), MEASURED),
        (report(executed=False), NEVER),
        (report(passed=False), NEVER),
        (report(passed="yes"), NEVER),
        (report(engine={"graph_sha256": "cd" * 32}), NEVER),
        (report(engine={}), NEVER),
        ([], NEVER),
    ],
)
def test_measured_is_what_a_report_of_this_very_graph_says(
    tmp_path: Path, content: object, state: str
) -> None:
    (tmp_path / REPORT).write_text(json.dumps(content))
    assert verification(tmp_path, DIGEST) == state


def test_without_a_report_nothing_was_measured(tmp_path: Path) -> None:
    assert verification(tmp_path, DIGEST) == NEVER


def test_what_is_no_report_is_said_and_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / REPORT).write_text("{")
    assert verification(tmp_path, DIGEST) == NEVER
    assert str(tmp_path / REPORT) in caplog.text


def test_kernels_are_measured_by_the_report_of_their_own_sources(tmp_path: Path) -> None:
    selection = Selection("id", "name", str(tmp_path), None, "rev", "why")
    write_kernels(tmp_path, geometry_of(), "fp8", source=DIGEST)
    (tmp_path / REPORT).write_text(json.dumps(report()))
    # Built, and verified, with other kernels than those that run it.
    assert engine_info(selection, None) == ("name", "gpu", "fp8", NEVER, "false")
    of_these = report(engine={"graph_sha256": sources_digest()})
    (tmp_path / REPORT).write_text(json.dumps(of_these))
    assert engine_info(selection, None)[3] == MEASURED


def test_an_engine_is_what_its_manifest_says(demo_engine: Path) -> None:
    selection = Selection("id", "name", str(demo_engine), None, "rev", "why")
    assert engine_info(selection, None) == ("name", "cpu", "fp32", NEVER, "false")
