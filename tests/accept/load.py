"""`make accept-6`, what the load test says of the service: platforms, tenants, reports, aiperf.

Knows what is promised; the service is the real one, at the speed of a simulated platform. Nothing
here was measured on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dgemma_loadtest import platforms
from dgemma_loadtest.evaluate.publications import LIMIT, predictions
from dgemma_loadtest.modelled import steps
from dgemma_loadtest.modelled.roofline import READINGS, Machine
from dgemma_loadtest.modelled.steady import Workload, crossover_of
from tests.accept.load_aiperf import aiperf_agrees
from tests.accept.load_service import PLATFORM, Ran, records, run, stage, tenants, written
from tests.accept.main_job import Line
from tests.accept.parts import Part, report
from tests.loadtest.browser import BROWSER, DARK, LIGHT, opened, pictured

SLOTS = 8
WEIGHTS = {"steady": 1.0, "gold": 2.0, "flood": 1.0}
JAIN = 0.95
VICTIM = 10.0  # times its p99 alone, beside a flood: its slots are shared, and so are passes
SPEED = f"{PLATFORM}-goal"  # a pass of eight canvases takes 18 ms


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


def shared(engine: Path, checkpoint: Path, seconds: int) -> Iterator[Line]:
    """Tenants on the real service with a fair queue, and the control without one."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        fair = _tenants(scratch, checkpoint, seconds, "fair")
        yield from _lines(fair, "fair", wanted=True)
        yield from _page(fair, scratch)
        yield from _lines(_tenants(scratch, checkpoint, seconds, "fcfs"), "  control: fcfs", False)


def _tenants(scratch: Path, checkpoint: Path, seconds: int, policy: str) -> Ran:
    def load(tenant: str, users: int, answer: int, think_s: float = 0.0) -> dict[str, Any]:
        return {
            "tenant": tenant,
            "weight": WEIGHTS[tenant],
            "users": users,
            "think_s": think_s,
            "prompts": {"prose": 1},
            "answer_tokens": answer,
            "sampling": {"ignore_eos": True},
        }

    steady, flood = load("steady", 2, 256, 0.2), load("flood", 40, 1024)
    content = {
        "schema": 1,
        "name": "tenants",
        "slots": SLOTS,
        "victim": {"tenant": "steady", "alone": "alone", "beside": "beside a flood"},
        "stages": [
            stage("alone", seconds / 2, [steady]),
            stage("beside a flood", seconds, [steady, flood]),
            stage("weights 2 and 1", seconds, [load("gold", 24, 512), load("flood", 24, 512)]),
        ],
    }
    place = scratch / policy
    place.mkdir()
    file, keys = tenants(place, WEIGHTS)
    return run(
        written(place / "scenario.yaml", content),
        place / "out",
        *("--simulate", SPEED, "--slots", str(SLOTS)),
        *("--tenants", str(file), "--tenant-keys", str(keys)),
        checkpoint=checkpoint,
        environment={"DGEMMA_SCHEDULER": policy},
    )


def _lines(ran: Ran, name: str, wanted: bool) -> Iterator[Line]:
    """Each is missed by the control."""
    summary = ran.summary
    by_name = {found["name"]: found for found in summary["stages"]}
    fairness = by_name["weights 2 and 1"]["fairness"]
    gap, victim = fairness["gap"], summary["victim"]
    held, miss = (f">= {JAIN}", "<= its bound", f"<= {VICTIM:g} ×"), "misses it"
    jain_holds, gap_holds = fairness["jain"] >= JAIN, gap["holds"]
    yield Line(
        f"{name}: Jain's index, weights 2:1",
        f"{fairness['jain']:.3f} over {fairness['backlogged_s']:.0f} s, shares "
        + ", ".join(f"{t} {share:.2f}" for t, share in fairness["shares"].items()),
        held[0] if wanted else miss,
        jain_holds is wanted,
    )
    yield Line(
        f"{name}: service gap",
        f"{gap['value']:.0f} rows by weight, bound {gap['bound']:.0f}",
        held[1] if wanted else miss,
        gap_holds is wanted,
    )
    ratio = victim["ratio"]["value"]
    yield Line(
        f"{name}: victim's p99 beside a flood",
        f"{victim['beside_p99_s']:.2f} s, {ratio:.1f} × {victim['alone_p99_s']:.2f} s alone",
        held[2] if wanted else miss,
        (ratio <= VICTIM) is wanted,
    )
    waits = by_name["beside a flood"]["fairness"]["longest_wait_s"]
    said = ", ".join(f"{tenant} {seconds:.1f} s" for tenant, seconds in waits.items())
    yield Line(f"{name}: longest wait", said, "", None)
    yield Line(
        f"{name}: exit code of the run",
        str(ran.code),
        "0" if wanted else "1",
        ran.code == (0 if wanted else 1),
    )


def _page(ran: Ran, scratch: Path) -> Iterator[Line]:
    page = ran.out / "report.html"
    if BROWSER is None:
        yield Line("report in Chromium", "skipped: there is no Chromium", "", None)
        return
    document, console = opened(page, scratch / "profile")
    pictures = [scratch / f"{scheme}.png" for scheme in (LIGHT, DARK)]
    for scheme, picture in zip((LIGHT, DARK), pictures, strict=True):
        pictured(page, scratch / f"profile-{scheme}", scheme, picture)
    differ = pictures[0].read_bytes() != pictures[1].read_bytes()
    plots = document.count("<figure")
    yield Line(
        "report in Chromium",
        f"{plots} plots, {len(console)} messages on the console, light and dark differ: {differ}",
        "plots, no message",
        plots > 0 and not console and differ,
    )


def interrupted(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Ctrl-C in the first stage, in the second, in its drain and in the baseline's run."""
    load = {"users": 4, "prompts": {"prose": 1}, "answer_tokens": 512}
    stages = [stage("first", 4, [load]), stage("second", 4, [load])]
    moments: dict[str, Callable[[Path], bool]] = {
        "at its first request": lambda out: records(out) >= 1,
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
                state = ran.run["state"] if (ran.out / "run.json").exists() else "no run"
                plots = page.read_text().count("<figure") if page.exists() else 0
                yield Line(
                    f"Ctrl-C {moment}",
                    f"{records(ran.out)} requests, {state}, {plots} plots, exit {ran.code}"
                    + ("" if plots else f": {ran.said[-300:]}"),
                    "a report",
                    plots > 0,
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
