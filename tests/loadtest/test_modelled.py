"""The model in virtual time beside its formula, and the crossover that both give."""

from __future__ import annotations

import math

import pytest

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.metrics.fairness import fairness
from dgemma_loadtest.metrics.throughput import Window, throughput
from dgemma_loadtest.modelled import steps
from dgemma_loadtest.modelled.engine import Engine, Loop
from dgemma_loadtest.modelled.phases import autoregressive, diffusion
from dgemma_loadtest.modelled.roofline import Machine
from dgemma_loadtest.modelled.steady import (
    Workload,
    autoregressive_rate,
    crossover,
    crossover_of,
    diffusion_rate,
)
from dgemma_loadtest.modelled.steps import Steps
from dgemma_loadtest.platforms import Kind
from dgemma_loadtest.records import Outcome, Record

H100 = Machine.named("h100-fp8")
LOAD = Workload()


def run(kind: Kind, users: int, answers: int, used: Steps) -> tuple[list[Record], float]:
    engine = Engine(H100, kind, users, used, [Loop("default", users)], seed=3)
    records, window = engine.run(answers, "stage")
    span = Window(window.measured_from_s, window.arrivals_end_s)
    return records, throughput(records, span).tokens_per_s or 0.0


@pytest.mark.parametrize("users", [1, 8, 32])
def test_virtual_time_agrees_with_the_formula(users: int) -> None:
    used = steps.published()
    _, slow = run("diffusion", users, 40 * users + 300, used)
    _, fast = run("autoregressive", users, 40 * users + 300, used)
    assert slow == pytest.approx(diffusion_rate(H100, LOAD, used.mean, users), rel=0.12)
    assert fast == pytest.approx(autoregressive_rate(H100, LOAD, users), rel=0.12)


def test_a_request_costs_a_pass_for_each_step_and_one_for_each_chunk() -> None:
    phases = list(diffusion(512, 300, (3, 1), 256))
    assert sum(phase.passes for phase in phases) == 2 + 3 + 1
    assert sum(phase.passes * phase.rows for phase in phases) == 2 + 3 + 2  # and one commit
    assert [phase.useful for phase in phases if phase.ends_block] == [256, 44]


def test_a_token_a_pass() -> None:
    phases = list(autoregressive(5000, 100))
    assert sum(phase.prompt_tokens for phase in phases) == 5000
    assert sum(phase.passes * phase.sequences for phase in phases) == 100
    assert sum(phase.useful for phase in phases) == 100


def test_a_lone_request_takes_its_passes(request: pytest.FixtureRequest) -> None:
    records, _ = run("diffusion", 1, 20, steps.fixed(16))
    for record in records:
        if record.outcome is Outcome.OK:
            assert record.usage is not None and record.usage.simulated
            assert len(record.chunks) == len(record.usage.steps)
            passes = sum(record.usage.steps) + 2
            took = record.ended_s - record.scheduled_s
            assert passes * H100.diffusion_s(1, 0, 0) < took < passes * H100.diffusion_s(2, 1, 4096)


def test_the_same_seed_gives_the_same_records() -> None:
    first, second = (run("diffusion", 4, 30, steps.published())[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("policy", "fair"), [("fair", True), ("fcfs", False)])
def test_weights_are_kept_only_by_a_fair_queue(policy: str, fair: bool) -> None:
    loops = [Loop("light", 20, 1.0), Loop("heavy", 20, 3.0)]
    engine = Engine(H100, "diffusion", 8, steps.published(), loops, "fair" if fair else "fcfs")
    found = fairness(engine.run(200, "stage", warmup=0)[0], 8)
    assert found is not None and found.jain is not None and found.gap is not None
    assert (found.jain > 0.98, found.gap.holds) == (fair, fair)


# The crossover


def test_both_give_the_same_at_the_crossover() -> None:
    users = crossover(H100, LOAD, 26.6)
    assert users is not None
    ratio = autoregressive_rate(H100, LOAD, users) / diffusion_rate(H100, LOAD, 26.6, users)
    assert ratio == pytest.approx(1, abs=0.01)
    assert 8 < users < 16


def test_more_steps_bring_it_forward_and_doubt_about_them_spreads_it() -> None:
    few, many = crossover(H100, LOAD, 16), crossover(H100, LOAD, 48)
    assert few is not None and many is not None and few > many
    found = crossover_of(H100, LOAD, steps.published())
    assert found is not None and found.low is not None and found.high is not None
    assert many < found.low < found.value < found.high < few
    sure = crossover_of(H100, LOAD, steps.fixed(16))
    assert sure is not None and sure.low is None and sure.value == few


def test_where_it_is_never_reached_there_is_none() -> None:
    assert crossover(Machine.named("dgx-station", "max"), LOAD, 1) is None


def test_canvases_of_an_answer() -> None:
    ends = [math.ceil(token / 256) for token in range(1, 20_000)]
    chance = [math.exp(-(t - 1) / 512) - math.exp(-t / 512) for t in range(1, 20_000)]
    mean = sum(c * p for c, p in zip(ends, chance, strict=True))
    assert LOAD.canvases(256) == pytest.approx(mean, rel=1e-3)


def test_steps_by_name_and_of_a_run() -> None:
    assert steps.named("20").mean == 20
    assert steps.measured({10: 3, 20: 1}, "a run").mean == 12.5
    for wrong in ("0", "49", "many"):
        with pytest.raises(InputError, match=r"^steps: got"):
            steps.named(wrong)
