"""`dgemma-build kernels`: options, tables and exit codes of the check of kernels.

Knows columns and streams; what is compiled and what counts as wrong is decided in `check`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.targets import load_targets, select
from dgemma_build.cli_targets import TargetsOption
from dgemma_build.kernels.check import Checked, Source, check, tasks
from dgemma_build.progress import shown

FAILED, BAD_INPUT = 1, 2
WIDE = 160  # columns, where nobody watches


def kernels(
    target: Annotated[
        list[str] | None,
        typer.Option(help="Only this target; may be given repeatedly.  [default: every GPU's]"),
    ] = None,
    geometry: Annotated[str, typer.Option(help="A geometry by name.")] = DEFAULT,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for what the tables say, and more.")
    ] = None,
    targets: TargetsOption = None,
) -> None:
    """Compile every kernel for every GPU, without one, and say what each takes of it.

    Exit code 1 where one does not compile, takes more than the chip has, or spills registers
    without a reason although it is a hot one.
    """
    told = Console(stderr=True)
    out = Console() if Console().is_terminal else Console(width=WIDE)
    try:
        if json_file is not None and not json_file.parent.is_dir():
            raise ConfigurationError(f"--json: {json_file.parent} is no directory; make it first")
        chips = _chips(target, targets)
        wanted = tasks(_source(), named_geometry(geometry), chips)
    except DgemmaError as error:
        told.print("error:", style="red", end=" ")
        told.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    with shown(told, pieces=True) as progress:
        found = check(wanted, progress)
    for capability, names in chips.items():
        of_chip = [one for one in found if one.capability == capability]
        out.print(_table(of_chip, capability, names))
    for line in _lines(found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(_json(found, geometry), indent=1) + "\n")
    if any(one.problem for one in found):
        raise typer.Exit(FAILED)


def _chips(names: Sequence[str] | None, extra: Path | None) -> dict[int, list[str]]:
    """Compute capability -> the targets that have it; of all targets, those with kernels."""
    known = load_targets(extra)
    found: dict[int, list[str]] = {}
    for target in [select(known, name) for name in names or ()] or known.values():
        capability = int((target.compute_capability or "0").replace(".", ""))
        if names and not capability:
            raise ConfigurationError(f"target {target.name!r} is no GPU; kernels are for GPUs")
        if names or capability in CAPABILITIES:
            found.setdefault(Chip.of(capability).capability, []).append(target.name)
    return found


def _source() -> Source:
    """ConfigurationError where triton is not installed."""
    try:
        from dgemma.engine.kernels.compiled import all_variants
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise ConfigurationError(
            "kernels are compiled by triton, which is not installed here; on Linux, install what "
            "requirements-gpu.lock pins: pip install triton==3.7.1"
        ) from None
    return all_variants


def _table(found: Sequence[Checked], capability: int, names: Sequence[str]) -> Table:
    most = Chip.of(capability).shared_bytes
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    bad = sum(bool(one.problem) for one in found)
    verdict = f"{bad} with a problem" if bad else "none with a problem"
    table.title = f"{', '.join(names)}: {len(found)} kernels, {verdict}; {most} bytes shared"
    for name in ("kernel", ">registers", ">shared", ">stack", ">spilled", "matrix", "verdict"):
        table.add_column(name.removeprefix(">"), justify="right" if name[0] == ">" else "left")
    for one in found:
        verdict = "[red]problem[/]" if one.problem else escape(_remark(one))
        name = escape(one.kernel)
        if (r := one.resources) is None:
            table.add_row(name, *[""] * 5, verdict)
            continue
        spilled = r.spill_store_bytes + r.spill_load_bytes
        numbers = (r.registers, r.shared_bytes, r.stack_bytes, spilled)
        table.add_row(name, *map(str, numbers), r.matrix, verdict)
    return table


def _remark(one: Checked) -> str:
    if one.resources is not None and one.resources.spills:
        return one.reason or "spills, and is not hot"
    return "slow, see below" if one.resources and one.resources.warnings else "good"


def _lines(found: Sequence[Checked]) -> Iterator[str]:
    for one in found:
        place = f"{one.capability} {one.kernel}"
        if one.problem:
            yield f"{place}: {one.problem}"
        for warning in one.resources.warnings if one.resources else ():
            yield f"{place}: {warning}"


def _json(found: Sequence[Checked], geometry: str) -> dict[str, Any]:
    return {
        "geometry": geometry,
        "triton": version("triton"),
        "kernels": [asdict(one) | {"problem": one.problem or None} for one in found],
    }
