"""Cells and crossovers by the model in virtual time: seconds for what would take hours.

Knows which loads are looked at; every figure from here is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dgemma_loadtest.evaluate.figures import figures
from dgemma_loadtest.evaluate.results import Cell, Crossover, Figures
from dgemma_loadtest.metrics.fairness import Victim, victim
from dgemma_loadtest.metrics.summary import StageSummary, summarise
from dgemma_loadtest.modelled.engine import Engine, Loop, Policy
from dgemma_loadtest.modelled.roofline import READINGS, Machine, Reading
from dgemma_loadtest.modelled.steady import Workload, crossover_of
from dgemma_loadtest.modelled.steps import Steps, fixed
from dgemma_loadtest.platforms import Kind, Platform, Precision
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Host, Run, Server, StageWindow

HOW = "virtual time"
STEADY = "formula of a steady state"
MOST_USERS = 1024
EXTREMES = (16, 48)  # steps of the preset `fast`, and the cap
SLOTS = 16  # of the multi-tenant loads
VICTIM_USERS, FLOOD_USERS = 20, 60
KINDS: tuple[Kind, ...] = ("diffusion", "autoregressive")


@dataclass(frozen=True)
class Plan:
    """What is looked at on every platform."""

    users: Sequence[int]
    tenancy: Sequence[str]
    steps: Steps
    load: Workload
    readings: Sequence[Reading] = READINGS
    answers: int = 60  # of each cell, at least; six of each user
    seed: int = 0


def cells(platform: Platform, precision: Precision, plan: Plan) -> Iterator[Cell]:
    """Nothing where the weights do not fit, nor for users without memory for their K/V."""
    for reading in plan.readings:
        machine = Machine.of(platform, precision, reading)
        room = machine.room(round(plan.load.prompt_tokens + 4 * plan.load.answer_tokens))
        for kind in KINDS:
            if "single" in plan.tenancy:
                for users in plan.users:
                    if users <= room:
                        yield _single(machine, kind, users, plan)
            if "multi" in plan.tenancy and room >= SLOTS:
                for policy in ("fair", "fcfs") if kind == "diffusion" else ("fcfs",):
                    yield _multi(machine, kind, policy, plan)


def crossovers(platform: Platform, precision: Precision, plan: Plan) -> Iterator[Crossover]:
    """By both readings, for the steps that were asked for and for both extremes."""
    for reading in plan.readings:
        machine = Machine.of(platform, precision, reading)
        if machine.room(plan.load.prompt_tokens + plan.load.answer_tokens) < 1:
            continue
        for steps in (plan.steps, *map(fixed, EXTREMES)):
            found = crossover_of(machine, plan.load, steps)
            yield Crossover(
                platform=platform.key,
                precision=precision,
                basis="simulated",
                how=STEADY,
                reading=reading,
                steps=steps.name,
                users=None if found is None else found.value,
                low=None if found is None else found.low,
                high=None if found is None else found.high,
            )


def _single(machine: Machine, kind: Kind, users: int, plan: Plan) -> Cell:
    loops = [Loop("default", users, load=plan.load)]
    engine = Engine(machine, kind, users, plan.steps, loops, "fcfs", plan.seed)
    stage = _stage(*engine.run(max(plan.answers, 6 * users), f"{users} users"))
    return _cell(machine, kind, "single", users, plan, figures(stage, machine.platform))


def _multi(machine: Machine, kind: Kind, policy: Policy, plan: Plan) -> Cell:
    """A steady tenant beside nobody, and beside another of the same weight that floods."""

    def run(*loops: Loop) -> tuple[list[Record], StageWindow]:
        count = 6 * sum(loop.users for loop in loops)
        engine = Engine(machine, kind, SLOTS, plan.steps, loops, policy, plan.seed)
        return engine.run(count, "s", warmup=0.0)

    steady = Loop("steady", VICTIM_USERS, load=plan.load)
    flood = Loop("flood", FLOOD_USERS, load=plan.load)
    alone, beside = run(steady), run(steady, flood)
    stage = _stage(*beside)
    ratio = _victim(alone[0], beside[0])
    found = figures(stage, machine.platform, None if ratio is None else ratio.ratio.value)
    return _cell(machine, kind, "multi", VICTIM_USERS + FLOOD_USERS, plan, found, policy)


def _victim(alone: Sequence[Record], beside: Sequence[Record]) -> Victim | None:
    def theirs(records: Sequence[Record]) -> list[Record]:
        return [r for r in records if r.tenant == "steady" and not r.warmup]

    return victim(theirs(alone), theirs(beside))


def _stage(records: list[Record], window: StageWindow) -> StageSummary:
    run = Run(
        target="virtual",
        scenario={"name": window.name, "slots": SLOTS},
        seed=0,
        started_at="",
        epoch_unix=0.0,
        host=Host("", "", 0, ""),
        server=Server("triton", simulated=HOW),
        stages=(window,),
    )
    return summarise(run, records).stages[0]


def _cell(
    machine: Machine,
    kind: Kind,
    tenancy: str,
    users: int,
    plan: Plan,
    found: Figures,
    policy: Policy | None = None,
) -> Cell:
    return Cell.model_validate(
        {
            "platform": machine.platform.key,
            "precision": machine.precision,
            "model": kind,
            "tenancy": tenancy,
            "users": users,
            "basis": "simulated",
            "how": HOW,
            "reading": machine.calibration.reading,
            "steps": plan.steps.name if kind == "diffusion" else None,
            "policy": policy,
            "figures": found,
        }
    )
