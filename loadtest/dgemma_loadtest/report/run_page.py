"""The report of one run: from its directory to a page, its table and its gates.

Knows which files a run's directory has; works with whatever a run that was broken off has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgemma_loadtest import recording, run_file
from dgemma_loadtest.metrics import summary as summaries
from dgemma_loadtest.metrics.summary import Summary, summarise
from dgemma_loadtest.records import Record
from dgemma_loadtest.report import run_plots, run_tables, sweep_plots, tenant_plots
from dgemma_loadtest.report.gates import GOOD_SHARE, Gate, failed, gates
from dgemma_loadtest.report.junit import junit
from dgemma_loadtest.report.page import Notice, Page, Section, write
from dgemma_loadtest.report.svg.plot import Plot
from dgemma_loadtest.run_file import Run

REPORT, JUNIT, TABLE, SUMMARY = "report.html", "junit.xml", "summary.csv", "summary.json"
BASELINE = "baseline"  # the directory of the other target's run


@dataclass(frozen=True)
class Reported:
    """Where the page is, and whether a gate failed."""

    path: Path
    gates: list[Gate]

    @property
    def failed(self) -> bool:
        return failed(self.gates)


def report(directory: Path, good_share: float = GOOD_SHARE) -> Reported:
    """Write `report.html`, `junit.xml`, `summary.json` and `summary.csv` into a run's directory.

    Raises InputError where there is no run.
    """
    run, records, summary = _read(directory)
    other = directory / BASELINE
    baseline = _read(other) if (other / run_file.FILE).exists() else None
    found = gates(summary, run.slo, good_share, None if baseline is None else baseline[2])
    write(page(run, records, summary, baseline), directory / REPORT)
    (directory / JUNIT).write_bytes(junit(found, summary.scenario or "load"))
    (directory / SUMMARY).write_bytes(summaries.to_json(summary))
    (directory / TABLE).write_text(summaries.to_csv(summary), encoding="utf-8")
    return Reported(directory / REPORT, found)


def page(
    run: Run,
    records: Sequence[Record],
    summary: Summary,
    baseline: tuple[Run, Sequence[Record], Summary] | None = None,
) -> Page:
    other = None if baseline is None else baseline[2]
    sections = [
        Section("Figures", tables=run_tables.stages(summary, other)),
        Section("Latency", plots=run_plots.distributions(summary, records, run.slo)),
        Section("More and more load", plots=sweep_plots.sweep(summary, other)),
        Section(
            "Steps and canvases", plots=_some(run_plots.steps(summary), run_plots.waste(summary))
        ),
        Section(
            "Tenants",
            run_tables.victim(summary),
            run_tables.tenants(summary),
            tenant_plots.service(summary, records),
        ),
        Section("Objectives", tables=run_tables.objectives(summary, run.slo)),
        Section(
            "The generator", run_tables.generator_words(summary), run_tables.generator(summary)
        ),
        Section(
            "What was measured",
            tables=run_tables.facts(run, None if baseline is None else baseline[0]),
        ),
    ]
    kinds = (
        [summary.kind]
        if other is None or other.kind == summary.kind
        else [summary.kind, other.kind]
    )
    return Page(
        f"{summary.scenario or 'Load test'}",
        f"{run.target}, {run.started_at}",
        kinds,
        _notices(run, summary, other),
        sections,
        (
            "Latencies count from when a request was due. Percentiles are nearest ranks, with 95 % "
            "confidence from order statistics. Throughput is of the measured part of a stage.",
            f"dgemma-loadtest {run.version}, schema {run.schema_version}, seed {run.seed}",
        ),
    )


def _notices(run: Run, summary: Summary, baseline: Summary | None) -> list[Notice]:
    said: list[Notice] = []
    if run.state != "complete":
        why = f": {run.why}" if run.why else ""
        said.append(
            Notice(f"This run is {run.state}{why}. The figures are of what there is.", True)
        )
    said += [Notice(f"Spoiled: {reason}", True) for reason in summary.overhead.reasons]
    if baseline is not None:
        if baseline.state != "complete":
            said.append(Notice(f"The baseline's run is {baseline.state}.", True))
        reasons = baseline.overhead.reasons
        said += [Notice(f"The baseline's run is spoiled: {reason}", True) for reason in reasons]
    if summary.kind == "simulated":
        said.append(
            Notice(
                f"Simulated ({run.server.simulated or 'see the records'}): passes take the time "
                "that a model says, and answers mean nothing. No figure here was measured on a GPU."
            )
        )
    return [*said, *map(Notice, summary.notes)]


def _read(directory: Path) -> tuple[Run, list[Record], Summary]:
    run, records = run_file.read(directory), recording.read(directory)
    return run, records, summarise(run, records)


def _some(*plots: Plot | None) -> list[Plot]:
    return [plot for plot in plots if plot is not None]
