"""`dgemma-build verify`: the one command that an operator with the machine runs.

Knows options, tables and exit codes; what is verified and how lives in the modules beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from dgemma.bench.report import Report
from dgemma.bench.timing import MOST_RUNS
from dgemma.errors import DgemmaError
from dgemma.machine import Machine
from dgemma.targets import load_targets, select
from dgemma.targets.products import gpus_for
from dgemma_build.cli_targets import TargetsOption
from dgemma_build.verify.run import Wanted, subject_of
from dgemma_build.verify.run import verify as run

_MARKS = {"passed": "[green]passed[/]", "failed": "[red]failed[/]", "skipped": "skipped"}
WIDE = 160  # columns, where nobody watches
FAILED, BAD_INPUT = 1, 2


def verify(
    directory: Annotated[Path, typer.Argument(help="Engine directory.", metavar="DIR")],
    store: Annotated[
        Path | None, typer.Option(help="Weight store of a plan, which has no weights of its own.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint, to compare with Hugging Face on prompts.")
    ] = None,
    device: Annotated[
        bool, typer.Option("--device", help="Run and time every kind of pass on this machine.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the report; it is made to be shared.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=64, help="Slots of the engine as run.")] = 2,
    context: Annotated[int, typer.Option(min=2, help="Tokens of a slot as run.")] = 2048,
    runs: Annotated[
        int, typer.Option(min=1, max=MOST_RUNS, help="Runs of which a median is taken.")
    ] = 20,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt for Hugging Face; may be given repeatedly.")
    ] = None,
    targets: TargetsOption = None,
) -> None:
    """Check an engine: whole, made for this machine and these weights, and right.

    Exit code 1 where anything failed. Without --device a GPU's engine is not run.
    """
    told = Console(stderr=True)
    out = Console() if Console().is_terminal else Console(width=WIDE)
    wanted = Wanted(device, slots, context, runs)
    if prompt:
        wanted = Wanted(device, slots, context, runs, tuple(prompt))
    try:
        subject = subject_of(directory, store, checkpoint)
        known, made = load_targets(targets), subject.manifest
        target = select(known, made.target)
        gpus = gpus_for(target, made.precision, known.values())
        target = target.model_copy(update={"gpus": gpus})
        with told.status("…") as status:
            report = run(subject, target, Machine.here(), wanted, lambda what: status.update(what))
    except DgemmaError as error:
        told.print("error:", style="red", end=" ")
        told.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    for table in tables(report):
        out.print(table)
    if json_file is not None:
        report.write(json_file)
    if device and not report.executed:
        why = next((c for c in report.checks if c.outcome == "failed"), report.checks[-1])
        told.print(f"not executed: {why.detail}", markup=False, highlight=False, soft_wrap=True)
    if not report.passed or (device and not report.executed):
        raise typer.Exit(FAILED)


def tables(report: Report) -> list[Table]:
    """What was found, part by part; a part that was not looked at has no table."""
    engine = report.engine
    checks = _table("check", "", "found", title=f"{engine.target} {engine.precision}")
    for check in report.checks:
        checks.add_row(check.name, _MARKS[check.outcome], check.detail)
    found = [checks]
    if report.parity:
        parity = _table("pass", ">rows", ">context", ">largest error", ">typical", ">limit", "")
        for p in report.parity:
            limit = f"{p.limit:g} {'largest' if p.exact else 'typical'}"
            numbers = (f"{p.max_error:.2e}", f"{p.typical_error:.2e}", limit)
            mark = _MARKS["passed" if p.passed else "failed"]
            parity.add_row(p.kind, str(p.rows), str(p.context), *numbers, mark)
        found.append(parity)
    if report.speed:
        speed = _table(
            ">rows", ">context", ">network, ms", ">with tail, ms", ">floor, ms", ">of it"
        )
        for s in report.speed:
            floor = "unknown" if s.floor_ms is None else f"{s.floor_ms:.2f}"
            share = "" if s.floor_ms is None else f"{100 * s.floor_ms / s.pass_ms:.0f} %"
            times = (f"{s.engine_ms:.3f}", f"{s.pass_ms:.3f}")
            speed.add_row(str(s.rows), str(s.context), *times, floor, share)
        found.append(speed)
    if report.memory is not None:
        memory = _table(">peak, GB", ">weights, GB", ">as estimated, GB")
        m = report.memory
        sizes = (m.peak_bytes, m.weights_bytes, m.estimated_bytes)
        memory.add_row(*(f"{size / 1e9:.2f}" for size in sizes))
        found.append(memory)
    if (theirs := report.hugging_face) is not None:
        table = _table("Hugging Face", ">prompts", ">same likeliest token", "")
        share = f"{100 * theirs.same_argmax:.1f} % of {theirs.positions}"
        table.add_row(_MARKS[theirs.outcome], str(theirs.prompts), share, theirs.detail)
        found.append(table)
    return found


def _table(*columns: str, title: str | None = None) -> Table:
    """A column that starts with > holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name[:1] == ">" else "left")
    return table
