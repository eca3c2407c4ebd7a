"""Whole summaries: groups, windows, verdicts, and that they survive their files."""

from __future__ import annotations

import csv
import io

from dgemma_loadtest.metrics.overhead import overhead
from dgemma_loadtest.metrics.summary import from_json, summarise, to_csv, to_json
from dgemma_loadtest.records import Outcome
from dgemma_loadtest.run_file import Client, StageWindow
from tests.loadtest.make import record, run_of, usage

WINDOW = StageWindow("stage", 0.0, 2.0, 12.0, 14.0, offered={"load": 2.0})


def requests() -> list:
    return [
        record(
            float(i),
            0.5,
            1.0,
            tenant="ab"[i % 2],
            warmup=i < 2,
            usage=usage(10, 12, queue_s=0.1),
        )
        for i in range(12)
    ]


def test_groups_without_the_warm_up() -> None:
    found = summarise(run_of(stages=(WINDOW,), slo={"ttfb": 1.0}), requests())
    (stage,) = found.stages
    assert [(g.by, g.name, g.requests) for g in stage.groups] == [
        ("all", "all", 10),
        ("tenant", "a", 5),
        ("tenant", "b", 5),
    ]
    assert stage.groups[0].throughput.offered_per_s == 1.0
    assert stage.groups[0].goodput.good == 10 and stage.fairness is not None
    assert found.kind == "measured" and found.state == "running"


def test_files_hold_all_of_it() -> None:
    found = summarise(run_of(stages=(WINDOW,)), requests())
    assert from_json(to_json(found)) == found
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 3 and float(rows[0]["ttfb_p50_s"]) == 0.5
    assert {row["requests_ok"] for row in rows} == {"10", "5"}


def test_without_a_stages_window_its_records_say() -> None:
    """As in a run that was killed: `run.json` knows nothing yet."""
    found = summarise(run_of(), requests())
    assert found.stages[0].groups[0].requests == 10
    assert summarise(run_of(), []).stages == ()


def test_simulated_is_said() -> None:
    simulated = [record(0, 1, usage=usage(4, simulated="h100-fp8"))]
    assert summarise(run_of(), simulated).kind == "simulated"
    assert summarise(run_of(), []).kind == "unknown"


def test_victim_of_the_scenario() -> None:
    run = run_of(scenario={"victim": {"tenant": "a", "alone": "one", "beside": "two"}})
    one = [record(i, 1.0, tenant="a", stage="one") for i in range(20)]
    two = [record(50 + i, 3.0, tenant="a", stage="two") for i in range(20)]
    found = summarise(run, one + two).victim
    assert found is not None and found.ratio.value == 3.0


def test_lag_that_spoils_a_run_is_said() -> None:
    good = overhead([record(i, 1.0, lag_s=0.01) for i in range(99)], None)
    assert not good.spoiled and good.lag_p99_s == 0.01
    bad = overhead([record(i, 1.0, lag_s=0.2 if i % 20 == 0 else 0.0) for i in range(99)], None)
    assert bad.spoiled and "late" in bad.reasons[0]


def test_a_busy_or_slow_generator_is_said() -> None:
    slow = Client(0.97, 1.0, 0.001, 0.2, 0.5)
    found = overhead([record(i, 1.0) for i in range(9)], slow)
    assert found.spoiled and len(found.reasons) == 2


def test_a_lag_of_no_account_does_not_spoil_a_fast_service() -> None:
    assert not overhead([record(i, 0.01, lag_s=0.0008) for i in range(99)], None).spoiled


def test_codes_of_errors() -> None:
    failed = [record(i, outcome=Outcome.FAILED, code="INTERNAL") for i in range(3)]
    group = summarise(run_of(), failed).stages[0].groups[0]
    assert group.errors == {"INTERNAL": 3} and group.outcomes == {"failed": 3}
