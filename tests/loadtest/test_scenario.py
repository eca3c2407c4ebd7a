"""Scenario files: the shipped ones, what is refused and how that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgemma_loadtest import prompts, scenario
from dgemma_loadtest.errors import InputError
from tests.loadtest.make import scenario_of

PROMISED = {
    *("single-user", "concurrency-sweep", "rate-sweep", "multi-tenant", "shared-vs-mig"),
    *("short-answers", "long-prompts", "infill", "soak"),
}


def test_all_that_is_promised_is_shipped() -> None:
    assert set(scenario.shipped()) >= PROMISED


@pytest.mark.parametrize("name", scenario.shipped())
def test_shipped_scenarios_hold_together(name: str) -> None:
    """Their prompts are there, and what is written into `run.json` can be read again."""
    wanted, library = scenario.load(name), prompts.library()
    assert wanted.name == name and wanted.about
    for load in (load for stage in wanted.stages for load in stage.loads):
        prompts.check(load.prompts, library, load.task)
    written_out = wanted.expanded()
    again = scenario.parse(written_out.model_dump(mode="json", by_alias=True, exclude_none=True))
    assert again == written_out


def test_sweeps_are_written_out() -> None:
    users = scenario.load("concurrency-sweep").expanded()
    assert [stage.loads[0].users for stage in users.stages] == [1, 2, 4, 8, 16, 32, 64]
    assert [stage.name for stage in users.stages][:2] == ["1 user", "2 users"]
    rates = scenario.load("rate-sweep").expanded()
    assert rates.stages[0].loads[0].offered == 0.1 and len(rates.stages) == 12


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ({}, "stages.0.loads.0: give one of users"),
        ({"users": 1, "arrivals": {"rate": 1}}, "give one of users"),
        ({"users": 0}, "stages.0.loads.0.users: Input should be greater than or equal to 1; got 0"),
        ({"users": 1, "user": 2}, "stages.0.loads.0.user: Extra inputs are not permitted"),
        ({"arrivals": {"process": "poisson"}}, "poisson needs rate"),
        ({"arrivals": {"process": "trace"}}, "a trace needs times_s"),
        ({"arrivals": {"process": "fractal", "rate": 1}}, "'poisson', 'gamma', 'constant'"),
        ({"users": 1, "cancel": {"share": 1.5, "after_s": 1}}, "cancel.share"),
        ({"users": 1, "cancel": {"share": 0.5}}, "give one of after_s and after_blocks"),
        ({"users": 1, "answer_tokens": {"min": 5, "max": 2}}, "min 5 is above max 2"),
        ({"users": 1, "prompts": {}}, "prompts"),
        ({"users": 1, "from_s": 3, "until_s": 2}, "must be above from_s 3"),
    ],
)
def test_mistakes_name_the_field(load: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        scenario_of(load)
    assert said in str(caught.value)


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        scenario_of({"users": 0}, {"users": -1, "tenant": "b"}, duration_s=-1)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sweep": {"users": [1], "until_knee": True}}, "until_knee needs rate"),
        ({"victim": {"tenant": "a", "alone": "x", "beside": "stage"}}, "there is no stage 'x'"),
        ({"schema": 2}, "schema"),
        ({"stages": []}, "stages"),
    ],
)
def test_mistakes_of_the_whole(change: dict[str, Any], said: str) -> None:
    content = {
        "schema": 1,
        "name": "n",
        "stages": [{"name": "stage", "loads": [{"users": 1}]}],
        **change,
    }
    with pytest.raises(InputError, match=said):
        scenario.parse(content)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of concurrency-sweep, "):
        scenario.load("no-such")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        scenario.load(str(broken))
    broken.write_text("just text")
    with pytest.raises(InputError, match=r"broken\.yaml: file"):
        scenario.load(str(broken))


def test_other_durations_and_prompts() -> None:
    short = scenario.load("multi-tenant").with_duration(6.0).with_prompts("demo")
    assert {(stage.duration_s, stage.warmup_s) for stage in short.stages} == {(6.0, 0.5)}
    assert {tuple(load.prompts) for stage in short.stages for load in stage.loads} == {("demo",)}
    windowed = scenario_of({"users": 1, "from_s": 2, "until_s": 4}, duration_s=8.0)
    (load,) = windowed.with_duration(4.0).stages[0].loads
    assert (load.from_s, load.until_s) == (1.0, 2.0)
