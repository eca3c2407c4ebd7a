"""All figures of a run in one object, `summary.json`, and as a table, `summary.csv`.

Knows how records are grouped (by stage, and within it by tenant, prompt class and load); the
figures themselves are the other modules'.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from dgemma_loadtest.metrics.fairness import Fairness, Victim, fairness, victim
from dgemma_loadtest.metrics.latency import Latencies, latencies
from dgemma_loadtest.metrics.overhead import Overhead, overhead
from dgemma_loadtest.metrics.quantiles import Distribution
from dgemma_loadtest.metrics.service import Span
from dgemma_loadtest.metrics.slo import Goodput, Slo, goodput
from dgemma_loadtest.metrics.throughput import Throughput, Window, throughput
from dgemma_loadtest.metrics.tokens import Tokens, tokens
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Run, StageWindow

SCHEMA = 1
By = Literal["all", "tenant", "class", "load"]
GROUPS: dict[By, Callable[[Record], str]] = {
    "all": lambda record: "all",
    "tenant": lambda record: record.tenant,
    "class": lambda record: record.prompt_class,
    "load": lambda record: record.load,
}


@dataclass(frozen=True)
class Group:
    """Requests of a stage that were due in its measured part and have something in common."""

    by: By
    name: str
    requests: int
    outcomes: dict[str, int]
    errors: dict[str, int]  # by code, of ends that are not ok
    latency: Latencies
    tokens: Tokens
    throughput: Throughput
    goodput: Goodput


@dataclass(frozen=True)
class StageSummary:
    name: str
    offered: dict[str, float]
    seconds: float
    groups: tuple[Group, ...]  # the first is of all
    fairness: Fairness | None


@dataclass(frozen=True)
class Summary:
    """`kind` says what its figures are worth."""

    scenario: str
    target: str
    state: str
    kind: Literal["measured", "simulated", "unknown"]
    stages: tuple[StageSummary, ...]
    overhead: Overhead
    victim: Victim | None
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA


_SUMMARY = TypeAdapter(Summary)


def summarise(run: Run, records: Sequence[Record]) -> Summary:
    """Of whatever there is: stages that a record names count, also where a run was broken off."""
    slo = Slo(**run.slo)
    stages = tuple(_stage(window, records, slo, run) for window in windows(run, records))
    measured = [record for record in records if not record.warmup]
    return Summary(
        scenario=str(run.scenario.get("name", "")),
        target=run.target,
        state=run.state,
        kind=_kind(run, records),
        stages=stages,
        overhead=overhead(measured, run.client),
        victim=_victim(run, measured),
        notes=run.notes,
    )


def windows(run: Run, records: Sequence[Record]) -> list[StageWindow]:
    """Of every stage; of one that the run does not know, from its records."""
    known = {window.name: window for window in run.stages}
    for record in records:
        if record.stage not in known:
            theirs = [r for r in records if r.stage == record.stage]
            begins = min((r.scheduled_s for r in theirs if not r.warmup), default=0.0)
            ends = max(r.ended_s for r in theirs)
            known[record.stage] = StageWindow(
                record.stage, begins, begins, ends, ends, ended_by="interrupt"
            )
    return sorted(known.values(), key=lambda window: window.begins_s)


def to_json(summary: Summary) -> bytes:
    return _SUMMARY.dump_json(summary, indent=2) + b"\n"


def from_json(content: bytes) -> Summary:
    """Raises ValueError (pydantic's) where the content is no summary."""
    return _SUMMARY.validate_json(content)


def to_csv(summary: Summary) -> str:
    """One line a group; units are in the names of the columns."""
    lines = [_row(stage, group) for stage in summary.stages for group in stage.groups]
    out = io.StringIO()
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()


def _stage(window: StageWindow, records: Sequence[Record], slo: Slo, run: Run) -> StageSummary:
    theirs = [record for record in records if record.stage == window.name]
    span = Window(window.measured_from_s, window.arrivals_end_s)
    groups = (
        group
        for by in GROUPS
        for group in _groups(by, theirs, span, slo)
    )  # fmt: skip
    return StageSummary(
        name=window.name,
        offered=window.offered,
        seconds=span.seconds,
        groups=tuple(groups),
        fairness=fairness(theirs, run.scenario.get("slots"), Span(span.begins_s, span.ends_s)),
    )


def _groups(by: By, records: Sequence[Record], span: Window, slo: Slo) -> Iterator[Group]:
    """None where there is one group alone: it would be all again."""
    of = GROUPS[by]
    names = sorted({of(record) for record in records})
    if by != "all" and len(names) < 2:
        return
    for name in names:
        everyone = [record for record in records if of(record) == name]
        theirs = [record for record in everyone if not record.warmup]
        yield Group(
            by=by,
            name=name,
            requests=len(theirs),
            outcomes=dict(Counter(record.outcome.value for record in theirs)),
            errors=dict(Counter(record.code for record in theirs if record.code)),
            latency=latencies(theirs),
            tokens=tokens(theirs),
            throughput=throughput(everyone, span),
            goodput=goodput(theirs, slo, span.seconds),
        )


def _victim(run: Run, records: Sequence[Record]) -> Victim | None:
    wanted = run.scenario.get("victim")
    if not wanted:
        return None
    theirs = [record for record in records if record.tenant == wanted["tenant"]]
    alone, beside = (
        [record for record in theirs if record.stage == wanted[stage]]
        for stage in ("alone", "beside")
    )
    return victim(alone, beside)


def _kind(run: Run, records: Sequence[Record]) -> Literal["measured", "simulated", "unknown"]:
    said = {r.usage.simulated for r in records if r.usage is not None}
    if any(said) or run.server.simulated not in (None, "false"):
        return "simulated"
    return "measured" if run.server.kind == "openai" or said else "unknown"


def _row(stage: StageSummary, group: Group) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": stage.name,
        "by": group.by,
        "name": group.name,
        "requests": group.requests,
        **{f"requests_{outcome}": group.outcomes.get(outcome, 0) for outcome in _OUTCOMES},
        "offered_per_s": group.throughput.offered_per_s,
        "completed_per_s": group.throughput.completed_per_s,
        "tokens_per_s": group.throughput.tokens_per_s,
        "good_per_s": group.goodput.per_s,
        "good_share": group.goodput.share.value if group.goodput.share else None,
        "waste": group.tokens.waste,
        "useful_tokens_per_pass": group.tokens.useful_per_pass,
        "cap_hit_rate": group.tokens.cap_hit_rate,
        "tokens_per_s_user_p50": _point(group.throughput.tokens_per_s_user, "p50"),
        "steps_mean": group.tokens.steps.mean,
    }
    for name in ("ttfb_s", "block_s", "e2e_s", "queue_s", "lag_s"):
        sample: Distribution = getattr(group.latency, name)
        for level in ("p50", "p95", "p99"):
            row[f"{name[:-2]}_{level}_s"] = _point(sample, level)
    return row


_OUTCOMES = ("ok", "rejected", "cancelled", "late", "failed", "unfinished", "unsent")


def _point(sample: Distribution, level: str) -> float | None:
    found = getattr(sample, level)
    return None if found is None else float(found.value)
