"""Locust, headless, as a user runs it: alone, with workers, and with a scenario's shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgemma_loadtest import recording, run_file
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.metrics.summary import from_json
from dgemma_loadtest.records import Outcome
from dgemma_loadtest.swarm.settings import SwarmSettings
from tests.loadtest.server import REPOSITORY, TruthServer

LOCUSTFILE = REPOSITORY / "loadtest" / "locustfile.py"
SCENARIO = """
schema: 1
name: swarm
stages:
  - name: one
    duration_s: 1
    loads: [{tenant: a, users: 1}, {tenant: b, users: 2, think_s: 0.05}]
  - name: two
    duration_s: 1
    warmup_s: 0.4
    loads: [{tenant: a, users: 4}, {tenant: c, arrivals: {process: constant, rate: 20}}]
"""


def locust(
    tmp_path: Path, host: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "swarm.yaml").write_text(SCENARIO)
    environment = {
        **os.environ,
        "DGEMMA_LOADTEST_SCENARIO": str(tmp_path / "swarm.yaml"),
        "DGEMMA_LOADTEST_OUT": str(tmp_path / "out"),
        "DGEMMA_LOADTEST_FIT": "off",
        **variables,
    }
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += [
        "--host",
        host,
        "--json-file",
        str(tmp_path / "table"),
        "--only-summary",
        *arguments,
    ]
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ended_well(done: subprocess.CompletedProcess[str]) -> bool:
    """Done, or done on a machine that was too busy for its figures to count."""
    return done.returncode == 3 * ("SPOILED" in done.stderr)


def table(tmp_path: Path) -> dict[str, int]:
    """Locust's own counts by row."""
    rows = json.loads((tmp_path / "table.json").read_text())
    return {row["name"]: row["num_requests"] for row in rows}


def test_with_workers(server: TruthServer, tmp_path: Path) -> None:
    """Records of all workers reach the master, and users of different workers are different."""
    done = locust(tmp_path, server.grpc, "-u", "6", "-r", "100", "-t", "2s", "--processes", "2")
    assert ended_well(done), done.stderr[-2000:]
    ok = [r for r in recording.read(tmp_path / "out") if r.outcome is Outcome.OK]
    assert len({record.user for record in ok}) == 6
    assert {record.user // 1_000_000 for record in ok} == {0, 1}
    rows = table(tmp_path)
    assert rows["a"] + rows["b"] == len(ok)
    assert len({r.user for r in ok if r.load == "b"}) == 4  # by the first stage's users
    run = run_file.read(tmp_path / "out")
    assert (run.generator, run.state, run.server.name) == ("locust", "complete", "truth")
    found = from_json((tmp_path / "out" / "summary.json").read_bytes())
    assert found.stages[0].name == "all" and found.stages[0].groups[0].requests > 10


def test_a_scenario_as_the_shape(server: TruthServer, tmp_path: Path) -> None:
    done = locust(tmp_path, server.grpc, DGEMMA_LOADTEST_SHAPE="scenario")
    assert ended_well(done), done.stderr[-2000:]
    records, run = recording.read(tmp_path / "out"), run_file.read(tmp_path / "out")
    assert [stage.name for stage in run.stages] == ["one", "two"]
    assert run.stages[1].offered == {"a": 4.0, "c": 20.0}
    assert run.stages[1].measured_from_s - run.stages[1].begins_s == pytest.approx(0.4)
    users = {
        stage: {load: len({r.user for r in records if (r.stage, r.load) == (stage, load)})
                for load in "abc"}
        for stage in ("one", "two")
    }  # fmt: skip
    rows, ok = table(tmp_path), [r for r in records if r.outcome is Outcome.OK]
    assert rows["a"] + rows["b"] + rows["c"] == len(ok) > 20
    assert run.client is not None and "results: " in done.stderr
    assert users["one"]["a"] == 1 and users["one"]["b"] == 2 and users["one"]["c"] == 0
    assert users["two"]["a"] >= 4 and users["two"]["c"] >= 5


def test_nobody_there(tmp_path: Path) -> None:
    done = locust(
        *(tmp_path, "grpc://127.0.0.1:9", "-u", "1", "-t", "5s"),
        DGEMMA_LOADTEST_CONNECT_TIMEOUT_S="0.5",
        DGEMMA_LOADTEST_FIT="auto",
    )
    assert done.returncode == 2 and "no server answers at grpc://127.0.0.1:9" in done.stderr


def test_bad_input(tmp_path: Path) -> None:
    done = locust(tmp_path, "localhost:8001", "-u", "1", "-t", "5s")
    assert done.returncode == 2 and "host: got 'localhost:8001'; allowed" in done.stderr


def test_bad_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGEMMA_LOADTEST_SEED", "-1")
    with pytest.raises(InputError, match=r"^DGEMMA_LOADTEST_SEED: .* got '-1'"):
        SwarmSettings.load()
