"""Whole runs of the generator against a real server that knows the truth."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from dgemma_loadtest import driver, recording
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.records import Outcome, Record
from dgemma_loadtest.scenario import parse
from tests.loadtest.generator.order import order_of, ran
from tests.loadtest.make import scenario_of
from tests.loadtest.server import TruthServer, truth_server

WAYS = {"refuse": "REFUSE me", "fail": "FAIL me", "break": "BREAK off", "hang": "HANG on"}


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """A class of prompts for each way in which an answer may end badly."""
    directory = tmp_path / "bad"
    directory.mkdir()
    for name, text in WAYS.items():
        (directory / f"{name}.yaml").write_text(f"- {{name: {name}, text: {text}}}")
    return str(directory)


def test_users_that_wait_for_their_answers(server: TruthServer, tmp_path: Path) -> None:
    wanted = scenario_of({"users": 5}, duration_s=0.5, warmup_s=0.2)
    result, records, run = ran(wanted, server.grpc, tmp_path / "out", slo={"ttfb": 5.0})
    assert {record.outcome for record in records} == {Outcome.OK}
    assert {record.user for record in records} == set(range(5))
    for user in range(5):
        theirs = [record for record in records if record.user == user]
        for before, after in itertools.pairwise(theirs):
            assert after.scheduled_s == pytest.approx(before.ended_s, abs=2e-6)
    assert any(record.warmup for record in records)
    counts_s = run.stages[0].measured_from_s
    assert all(record.warmup == (record.scheduled_s < counts_s) for record in records)
    _is_whole(max(records, key=lambda record: len(record.chunks)))
    (stage,) = result.stages
    assert stage.groups[0].requests == sum(not record.warmup for record in records)
    assert stage.groups[0].goodput.good == stage.groups[0].requests
    assert (result.state, result.kind, run.server.name) == ("complete", "simulated", "truth")
    assert run.client is not None and run.client.loop_lag_p50_s < 0.02


def test_arrivals_that_wait_for_nobody(tmp_path: Path) -> None:
    """Each answer takes half a second, and 40 are due in every second all the same."""
    load = {"arrivals": {"process": "constant", "rate": 40}, "connections": 3}
    with truth_server("--first-ms", "500", "--sigma", "0", "--blocks", "1") as slow:
        _, records, run = ran(scenario_of(load, duration_s=0.6), slow.grpc, tmp_path / "out")
    begins = run.stages[0].begins_s
    assert [round(record.scheduled_s - begins, 3) for record in records] == [
        number / 40 for number in range(24)
    ]
    assert {record.outcome for record in records} == {Outcome.OK}
    assert all(0.5 <= record.ended_s - record.scheduled_s < 0.9 for record in records)


def test_http_is_measured_alike(server: TruthServer, tmp_path: Path) -> None:
    _, records, run = ran(scenario_of({"users": 3}), server.http, tmp_path / "out")
    assert {record.outcome for record in records} == {Outcome.OK}
    assert {chunk.kind for record in records for chunk in record.chunks} == {"text"}
    for record in records:
        assert record.usage is not None and record.usage.committed_tokens is None
        assert record.usage.useful_tokens == 40 * len(record.chunks)
    assert (run.server.model, run.server.max_context) == ("truth", 4096)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_how_requests_end(server: TruthServer, tmp_path: Path, bad: str, protocol: str) -> None:
    fast = {"users": 1, "retry_s": 0.05, "timeout_s": 0.3}
    told = {"grpc": 0.05, "http": 1.0}[protocol]  # seconds to wait after a refusal
    loads = [{"name": way, "prompts": {way: 1}, **fast} for way in WAYS]
    leaver = {"name": "leaver", "users": 2, "cancel": {"share": 1.0, "after_blocks": 1}}
    hasty = {"name": "hasty", "users": 2, "cancel": {"share": 1.0, "after_s": 0.005}}
    wanted = scenario_of(*loads, leaver, hasty, duration_s=0.8)
    _, records, _ = ran(wanted, getattr(server, protocol), tmp_path / "out", prompts=bad)
    ends = {(record.load, record.outcome, record.code) for record in records}
    refused, failed, broken = {
        "grpc": ("RESOURCE_EXHAUSTED", "INTERNAL", "INTERNAL"),
        "http": ("HTTP_429", "HTTP_500", "UNAVAILABLE"),
    }[protocol]
    assert ends - {("break", Outcome.OK, None)} == {
        ("refuse", Outcome.REJECTED, refused),
        ("fail", Outcome.FAILED, failed),
        ("break", Outcome.FAILED, broken),
        ("hang", Outcome.LATE, "TIMEOUT"),
        ("leaver", Outcome.CANCELLED, None),
        ("hasty", Outcome.CANCELLED, None),
    }
    assert all(len(record.chunks) == 1 for record in records if record.load == "leaver")
    refusals = [record for record in records if record.load == "refuse"]
    assert {record.retry_after_s for record in refusals} == {told}
    assert 1 <= len(refusals) <= 1 + 0.8 / told  # as long as it is told, not at once


def test_requests_that_are_open_at_the_end(tmp_path: Path) -> None:
    """Those that the drain does not wait for are cut off and told, not forgotten."""
    slow = ("--first-ms", "60000", "--sigma", "0")
    load = {"arrivals": {"process": "constant", "rate": 20}, "max_open": 5}
    with truth_server(*slow) as never:
        result, records, run = ran(
            scenario_of(load, duration_s=0.5, drain_s=0.2), never.grpc, tmp_path / "out"
        )
    assert Counter(record.outcome for record in records) == {
        Outcome.UNFINISHED: 5,
        Outcome.UNSENT: 5,
    }
    ttfb = result.stages[0].groups[0].latency.ttfb_s
    assert ttfb.censored == 5 and ttfb.p99 is not None and ttfb.p99.at_least
    assert 0.6 <= run.stages[0].ended_s - run.stages[0].begins_s < 5.0


def test_stages_follow_each_other_and_a_sweep_ends_at_the_knee(
    server: TruthServer, tmp_path: Path
) -> None:
    """40 requests a second complete within their stage; of 2000, 10 at a time, few do."""
    content = {
        "schema": 1,
        "name": "knee",
        "sweep": {"rate": [20, 40, 2000, 4000], "until_knee": True, "knee_share": 0.6},
        "stages": [
            {
                "name": "rate",
                "duration_s": 0.6,
                "drain_s": 5.0,
                "loads": [{"arrivals": {"process": "constant", "rate": 1}, "max_open": 10}],
            }
        ],
    }
    _, records, run = ran(parse(content), server.grpc, tmp_path / "out")
    assert [stage.name for stage in run.stages] == ["20 per s", "40 per s", "2000 per s"]
    assert run.stages[-1].ended_by == "knee"
    assert {record.stage for record in records} == {stage.name for stage in run.stages}


def test_so_many_requests_and_no_more(server: TruthServer, tmp_path: Path) -> None:
    wanted = scenario_of({"users": 3}, requests=10, duration_s=30.0)
    _, records, run = ran(wanted, server.grpc, tmp_path / "out")
    assert len(records) == 10 and run.stages[0].ended_by == "requests"


def test_the_same_seed_asks_the_same(server: TruthServer, tmp_path: Path) -> None:
    def asked(number: int) -> list[tuple[str, str, float]]:
        wanted = scenario_of({"arrivals": {"rate": 50}, "prompts": {"code": 1, "prose": 1}})
        _, records, run = ran(wanted, server.grpc, tmp_path / str(number), seed=3)
        begins = run.stages[0].begins_s
        return [(r.id, r.prompt, round(r.scheduled_s - begins, 4)) for r in records]

    assert asked(1) == asked(2)


def test_each_tenant_has_its_key_and_may_have_its_server(tmp_path: Path) -> None:
    loads = [{"tenant": name, "users": 1} for name in ("a", "b", "c")]
    with truth_server("--key", "secret-a") as one, truth_server("--key", "secret-b") as other:
        _, records, _ = ran(
            scenario_of(*loads),
            one.grpc,
            tmp_path / "out",
            keys={"a": "secret-a", "b": "secret-b"},
            tenant_targets={"b": other.grpc},
        )
    ends = {record.tenant: record.outcome for record in records}
    assert ends == {"a": Outcome.OK, "b": Outcome.OK, "c": Outcome.FAILED}
    assert {r.code for r in records if r.tenant == "c"} == {"UNAUTHENTICATED"}


def test_lengths_are_fitted_to_what_the_server_says(server: TruthServer, tmp_path: Path) -> None:
    wanted = scenario_of({"users": 1, "answer_tokens": 100_000})
    for number, target in enumerate((server.grpc, server.http)):
        _, records, run = ran(wanted, target, tmp_path / str(number), fit="auto")
        assert run.fit["context"] == 4096
        assert {record.max_new_tokens for record in records} == {2048}


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:9", "http://127.0.0.1:9"])
def test_nobody_there(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGEMMA_LOADTEST_CONNECT_TIMEOUT_S", "0.5")
    with pytest.raises(InputError, match="no server answers at"):
        ran(scenario_of({"users": 1}), url, tmp_path / "out", fit="auto")


def test_a_server_that_dies(tmp_path: Path) -> None:
    """Every request has its end, and the run its figures."""
    with truth_server("--first-ms", "100") as mortal:

        def show(event: dict) -> None:
            if event["event"] == "progress" and event["outcomes"]:
                mortal.process.kill()

        wanted = scenario_of({"users": 4, "retry_s": 0.1}, duration_s=1.2)
        result = driver.run(order_of(wanted, mortal.grpc, tmp_path / "out"), show)
        records: list[Record] = recording.read(tmp_path / "out")
    found = Counter(record.outcome for record in records)
    assert found[Outcome.OK] >= 4 and found[Outcome.FAILED] >= 4
    assert {r.code for r in records if r.outcome is Outcome.FAILED} == {"UNAVAILABLE"}
    assert result.state == "complete"


def _is_whole(record: Record) -> None:
    """Everything that the server says of an answer is in its record."""
    assert record.usage is not None and record.finish_reason == "stop"
    assert [chunk.block for chunk in record.chunks] == list(range(len(record.chunks)))
    assert tuple(chunk.steps for chunk in record.chunks) == record.usage.steps
    assert record.usage.useful_tokens == sum(chunk.characters for chunk in record.chunks)
    assert record.started_s is not None and record.first_s is not None
    assert record.scheduled_s <= record.started_s < record.first_s <= record.ended_s
