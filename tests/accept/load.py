"""`make accept-6`, what the load test says of the service: platforms, tenants, reports, aiperf.

Knows what is promised; the service is the real one, at the speed of a simulated platform. Nothing
here was measured on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dgemma_loadtest import platforms
from dgemma_loadtest.evaluate.publications import LIMIT, predictions
from dgemma_loadtest.modelled import steps
from dgemma_loadtest.modelled.roofline import READINGS, Machine
from dgemma_loadtest.modelled.steady import Workload, crossover_of
from tests.accept.load_aiperf import aiperf_agrees
from tests.accept.load_service import SPEED, records, run, stage, written
from tests.accept.load_tenants import shared
from tests.accept.main_job import Line
from tests.accept.parts import Part, report


class Name(StrEnum):
    """The parts of the table."""

    PLATFORMS = "platforms"
    AIPERF = "aiperf"
    TENANTS = "tenants"
    INTERRUPT = "interrupt"


def predicted(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """What a model that is set by H200 in FP8 alone says of others' figures, and the crossover."""
    for found in predictions(platforms.chosen("all")):
        if found.reading != "sum" or found.calibrated:
            continue
        low, high = (f"{value:.4g}" for value in found.predicted)
        published = " to ".join(dict.fromkeys(f"{value:.4g}" for value in found.published))
        said = low if low == high else f"{low} to {high}"
        claims = f"± {LIMIT:.0%}" if found.agrees is not None else "no agreement claimed"
        yield Line(
            f"{found.platform}, {found.what}",
            f"{said} {found.unit}, published {published}",
            claims,
            found.agrees,
        )
    for place in platforms.chosen("all"):
        said = []
        for reading in READINGS:
            crossing = crossover_of(Machine.of(place, None, reading), Workload(), steps.published())
            if crossing is not None:
                interval = (
                    "" if crossing.low is None else f" ({crossing.low:.1f}–{crossing.high:.1f})"
                )
                said.append(f"{reading} {crossing.value:.1f}{interval}")
        name = f"{place.key}-{place.default_precision}"
        yield Line(f"crossover, simulated, {name}", "; ".join(said) + " at once", "", None)


def interrupted(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Ctrl-C while nothing counts yet, in the midst of a run, and in the baseline's."""
    load = {"users": 4, "prompts": {"prose": 1}, "answer_tokens": 512}
    stages = [stage("first", 4, [load]), stage("second", 4, [load])]
    moments: dict[str, Callable[[Path], bool]] = {
        "in the warm-up": lambda out: records(out) >= 1,
        "in the second stage": lambda out: records(out) >= 20,
        "in the baseline": lambda out: records(out / "baseline") >= 1,
    }
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        content = {"schema": 1, "name": "short", "stages": stages}
        scenario = written(scratch / "short.yaml", content)
        for turn in range(rounds):
            for number, (moment, when) in enumerate(moments.items()):
                ran = run(
                    scenario,
                    scratch / f"{turn}-{number}",
                    *("--simulate", SPEED, "--slots", "4", "--baseline", "simulated"),
                    checkpoint=checkpoint,
                    interrupt=when,
                )
                page = ran.out / "report.html"
                text = page.read_text() if page.exists() else ""
                plots, says = text.count("<figure"), "run is interrupted" in text
                yield Line(
                    f"Ctrl-C {moment}",
                    f"{records(ran.out)} requests, {plots} plots, exit {ran.code}"
                    + ("" if says else f": {ran.said[-300:]}"),
                    "a report that says so",
                    says and (plots > 0 or moment == "in the warm-up"),
                )


# What each runs, and how many rounds, requests or seconds of it.
PARTS: dict[Name, tuple[Part, int]] = {
    Name.PLATFORMS: (predicted, 1),
    Name.AIPERF: (aiperf_agrees, 80),
    Name.TENANTS: (shared, 40),
    Name.INTERRUPT: (interrupted, 1),
}


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    only: Annotated[list[Name] | None, typer.Option(help="Parts to run; repeatable.")] = None,
    share: Annotated[
        float, typer.Option(help="Of the rounds of each part.", min=0.001, max=1.0)
    ] = 1.0,
) -> None:
    """Print the table; six minutes. The exit code is 1 where a promise does not hold."""
    chosen = (PARTS[name] for name in only or PARTS)
    report(chosen, engine, checkpoint, share, "the load test")


if __name__ == "__main__":
    typer.run(main)
