"""`dgemma-loadtest evaluate`: platforms × tenancy × precision in one report and one file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dgemma_loadtest import platforms, recording, run_file
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.evaluate import model, publications, runs
from dgemma_loadtest.evaluate.page import REPORT, page
from dgemma_loadtest.evaluate.results import FILE, Cell, Results, merge, read
from dgemma_loadtest.metrics.summary import summarise
from dgemma_loadtest.modelled import steps as steps_
from dgemma_loadtest.modelled.steady import Workload
from dgemma_loadtest.modelled.steps import Steps
from dgemma_loadtest.platforms import Platform, Precision
from dgemma_loadtest.report.page import write

USERS = "1,2,4,8,16,32,64,128"


def evaluate(
    out: Annotated[Path, typer.Option(help="Directory for evaluation.html and results.json.")],
    platforms_: Annotated[
        str, typer.Option("--platforms", help="all, or names; a file of TOML is one, too.")
    ] = "all",
    tenancy: Annotated[str, typer.Option(help="single, multi or both")] = "both",
    precisions: Annotated[
        str, typer.Option(help="default (each platform's own), all, or names")
    ] = "default",
    users: Annotated[str, typer.Option(help="Requests at once, commas between.")] = USERS,
    steps: Annotated[
        str, typer.Option(help="Of canvases: adaptive, a number, or a run's directory.")
    ] = "adaptive",
    prompt_tokens: Annotated[int, typer.Option(min=1, max=100_000)] = 512,
    answer_tokens: Annotated[int, typer.Option(help="In the mean.", min=1, max=100_000)] = 512,
    price: Annotated[
        list[str] | None, typer.Option(help="PLATFORM=DOLLARS an hour; repeatable.")
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Results of others, or a run's directory, PLATFORM=DIRECTORY where it does not "
            "tell its platform; repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """What the service is worth on which platform, beside autoregressive decoding.

    Figures of platforms that are not here come from a model in virtual time and are marked
    simulated; `run --simulate` has the whole service run at a platform's speed, and `run` against
    a deployment measures. `--from` takes the results of both, and others' files.
    """
    chosen = _priced(platforms.chosen(platforms_), price or [])
    plan = model.Plan(
        users=_numbers(users),
        tenancy=_tenancy(tenancy),
        steps=_steps(steps),
        load=Workload(prompt_tokens, answer_tokens),
        seed=seed,
    )
    given = [_given(text) for text in from_ or []]
    results = merge([_modelled(chosen, precisions, plan), *given])
    out.mkdir(parents=True, exist_ok=True)
    results.write(out / FILE)
    write(page(results, chosen), out / REPORT)
    console = Console()
    for line in (*_said(results), str(out / REPORT)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _modelled(chosen: Sequence[Platform], precisions: str, plan: model.Plan) -> Results:
    pairs = [(place, precision) for place in chosen for precision in _precisions(place, precisions)]
    cells = [cell for place, precision in pairs for cell in model.cells(place, precision, plan)]
    found = [one for place, precision in pairs for one in model.crossovers(place, precision, plan)]
    return Results(
        day=datetime.now(UTC).date(),
        workload=f"prompts of {plan.load.prompt_tokens} tokens, answers of "
        f"{plan.load.answer_tokens} in the mean, steps {plan.steps.about}",
        cells=(*cells, *publications.cells(chosen)),
        crossovers=tuple(found),
    )


def _said(results: Results) -> list[str]:
    """The crossover of each platform, in a line."""
    lines = []
    for place, precision in dict.fromkeys((c.platform, c.precision) for c in results.crossovers):
        theirs = [c for c in results.crossovers if (c.platform, c.precision) == (place, precision)]
        asked = sorted(c.users for c in theirs if not c.steps.endswith("fixed") and c.users)
        every = sorted(c.users for c in theirs if c.users)
        if asked:
            lines.append(
                f"{place}-{precision}: autoregressive overtakes at {asked[0]:.0f} to "
                f"{asked[-1]:.0f} requests at once (simulated; {every[0]:.0f} to {every[-1]:.0f} "
                "between 48 and 16 steps)"
            )
    return lines


def _given(text: str) -> Results:
    """A file or directory of results, or a run."""
    place, mark, rest = text.partition("=")
    path = Path(rest if mark else text)
    if not runs.is_run(path):
        return read(path)
    cells: list[Cell] = runs.cells(path, place if mark else None)
    name = run_file.read(path).scenario.get("name", "a run")
    return Results(day=datetime.now(UTC).date(), workload=f"{name}", cells=tuple(cells))


def _steps(text: str) -> Steps:
    path = Path(text)
    if not runs.is_run(path):
        return steps_.named(text)
    summary = summarise(run_file.read(path), recording.read(path))
    counts: dict[int, int] = {}
    for stage in summary.stages:
        for number, blocks in stage.groups[0].tokens.steps_histogram.items():
            counts[number] = counts.get(number, 0) + blocks
    return steps_.measured(counts, text)


def _precisions(platform: Platform, wanted: str) -> Sequence[Precision]:
    if wanted == "default":
        return [platform.default_precision]
    if wanted == "all":
        return platform.precisions
    names = [name.strip() for name in wanted.split(",")]
    known = ("bf16", "fp8", "int4", "nvfp4")
    if not set(names) <= set(known):
        raise InputError(
            f"precisions: got {wanted!r}; allowed: default, all, or {', '.join(known)}"
        )
    return [precision for precision in platform.precisions if precision in names]


def _tenancy(wanted: str) -> Sequence[str]:
    if wanted not in ("single", "multi", "both"):
        raise InputError(f"tenancy: got {wanted!r}; allowed: single, multi, both")
    return ("single", "multi") if wanted == "both" else (wanted,)


def _numbers(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 1 <= found[0] <= found[-1] <= model.MOST_USERS:
        raise InputError(
            f"users: got {text!r}; allowed: numbers from 1 to {model.MOST_USERS}, commas between"
        )
    return found


def _priced(chosen: Sequence[Platform], prices: Sequence[str]) -> list[Platform]:
    given: dict[str, float] = {}
    for text in prices:
        name, _, dollars = text.partition("=")
        try:
            given[name] = float(dollars)
        except ValueError:
            given[name] = 0.0
        if given[name] <= 0 or name not in {place.key for place in chosen}:
            raise InputError(f"price: got {text!r}; allowed: PLATFORM=DOLLARS, above 0, an hour")
    return [
        place
        if place.key not in given
        else place.model_copy(
            update={"price": platforms.Price(usd_per_hour=given[place.key], source="given")}
        )
        for place in chosen
    ]
