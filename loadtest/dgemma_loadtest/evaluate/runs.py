"""Cells of runs: what was measured on a machine, or on the whole service with simulated passes.

Knows a run's directory; knows nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dgemma_loadtest import platforms, recording, run_file
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.evaluate.figures import figures
from dgemma_loadtest.evaluate.results import Cell, Hardware
from dgemma_loadtest.metrics.summary import Summary, summarise
from dgemma_loadtest.platforms import Kind, Platform
from dgemma_loadtest.report.facts import found
from dgemma_loadtest.report.knee import offered
from dgemma_loadtest.run_file import Run

BASELINE = "baseline"


def is_run(path: Path) -> bool:
    return (path / run_file.FILE).is_file()


def cells(directory: Path, platform: str | None = None) -> list[Cell]:
    """One for each stage, those of the baseline too. Raises InputError.

    Of a closed loop its users count; of an open loop there is no number of requests at once.
    """
    run, summary = _read(directory)
    place = platform or _platform(run)
    made = list(_of(run, summary, place, "diffusion"))
    if is_run(directory / BASELINE):
        made += _of(*_read(directory / BASELINE), place, "autoregressive")
    return made


def _of(run: Run, summary: Summary, place: str, kind: Kind) -> Iterator[Cell]:
    known: Platform | None = platforms.load(place) if place in platforms.shipped() else None
    simulated = summary.kind == "simulated"
    ratio = summary.victim.ratio.value if summary.victim else None
    for stage in summary.stages:
        users = offered(stage)
        if not stage.groups or users < 1 or not users.is_integer():
            continue
        yield Cell(
            platform=place,
            precision=run.server.precision,
            model=kind,
            tenancy="multi" if stage.fairness else "single",
            users=int(users),
            basis="simulated" if simulated else "measured",
            how="service with the simulated engine" if simulated else "service",
            steps=_steps(run) if kind == "diffusion" else None,
            hardware=Hardware(
                name=found(run, "hardware"),
                driver=found(run, "driver"),
                engine_hash=found(run, "engine hash"),
            ),
            spoiled=summary.overhead.spoiled,
            figures=figures(stage, known, ratio),
        )


def _read(directory: Path) -> tuple[Run, Summary]:
    run = run_file.read(directory)
    return run, summarise(run, recording.read(directory))


def _platform(run: Run) -> str:
    """By what the server says of itself. Raises InputError."""
    said = [run.server.simulated, run.server.profile, run.server.target]
    for name in platforms.shipped():
        if any(text and text.startswith(name) for text in said):
            return name
    raise InputError(
        f"from: the run against {run.target} does not tell its platform; give it as NAME=DIRECTORY "
        f"with a name such as {', '.join(platforms.shipped())}"
    )


def _steps(run: Run) -> str:
    presets = {
        str(load.get("sampling", {}).get("preset", "the checkpoint's own"))
        for stage in run.scenario.get("stages", ())
        for load in stage.get("loads", ())
    }
    return ", ".join(sorted(presets)) or "the checkpoint's own"
