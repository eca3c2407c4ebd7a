"""The tables of one run's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dgemma_loadtest.metrics.bootstrap import Estimate
from dgemma_loadtest.metrics.quantiles import Quantile
from dgemma_loadtest.metrics.summary import Group, StageSummary, Summary
from dgemma_loadtest.report.facts import NAMES, found
from dgemma_loadtest.report.page import Cell, Table
from dgemma_loadtest.report.words import MISSING, between, number, quantile, seconds, share
from dgemma_loadtest.run_file import Run

_COLUMNS = (
    "stage",
    "requests",
    "tokens/s",
    "a user, p50",
    "first block, p50",
    "p99",
    "block, p50",
    "p99",
    "end, p50",
    "p99",
    "steps, mean",
    "waste",
    "kind",
)


def stages(summary: Summary, baseline: Summary | None) -> list[Table]:
    """One line a stage, and below it one for each tenant or class."""
    tables = [Table(_COLUMNS, list(_lines(summary)), "Medians and 99th percentiles.")]
    if baseline is not None:
        caption = f"The baseline, {baseline.target}, under the same load."
        tables.append(Table(_COLUMNS, list(_lines(baseline)), caption))
    return tables


def _lines(summary: Summary) -> Iterator[list[Cell]]:
    for stage in summary.stages:
        for group in stage.groups:
            if group.by in ("all", "tenant") or len(summary.stages) == 1:
                name = stage.name if group.by == "all" else f"· {group.name}"
                yield [Cell(name), *_figures(group), Cell("", kind=summary.kind)]


def _figures(group: Group) -> list[Cell]:
    bad = {name: count for name, count in group.outcomes.items() if name != "ok"}
    latency, rate = group.latency, group.throughput
    user = rate.tokens_per_s_user.p50
    return [
        Cell(str(group.requests), ", ".join(f"{count} {name}" for name, count in bad.items())),
        Cell(number(rate.tokens_per_s), _per_s(rate.completed_per_s)),
        Cell(number(None if user is None else user.value)),
        *(_time(getattr(sample, level))
          for sample in (latency.ttfb_s, latency.block_s, latency.e2e_s)
          for level in ("p50", "p99")),
        Cell(number(group.tokens.steps.mean), _cap(group.tokens.cap_hit_rate)),
        Cell(share(group.tokens.waste)),
    ]  # fmt: skip


def _per_s(rate: float | None) -> str:
    return "" if rate is None else f"{number(rate)} answers/s"


def _cap(rate: float | None) -> str:
    return "" if rate is None else f"{share(rate)} at cap"


def _time(found: Quantile | None) -> Cell:
    return Cell(quantile(found), between(found))


def victim(summary: Summary) -> list[str]:
    found = summary.victim
    if found is None:
        return []
    return [
        f"Victim {found.tenant}: p99 to the end {seconds(found.alone_p99_s)} alone, "
        f"{seconds(found.beside_p99_s)} beside the aggressor, {_factor(found.ratio)}."
    ]


def _factor(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f} times as long"
    return f"{ratio.value:.2f} times as long (95 %: {ratio.low:.2f} to {ratio.high:.2f})"


def tenants(summary: Summary) -> list[Table]:
    rows = [row for stage in summary.stages for row in _fairness(stage)]
    columns = (
        "stage",
        "Jain's index",
        "all waited for",
        "service gap",
        "its bound",
        "longest wait",
    )
    caption = (
        "Of spans in which all tenants waited for a slot. Jain's index: 1 is as weights promise, "
        "1/n is all for one of n tenants. The gap is in rows of passes by weight."
    )
    return [Table(columns, rows, caption)] if rows else []


def _fairness(stage: StageSummary) -> Iterator[list[Cell]]:
    found = stage.fairness
    if found is None:
        return
    gap, waits = found.gap, found.longest_wait_s
    longest = max(waits, key=lambda tenant: waits[tenant])
    yield [
        Cell(stage.name),
        Cell(MISSING if found.jain is None else f"{found.jain:.3f}", _shares(found.shares)),
        Cell(seconds(found.backlogged_s)),
        Cell(number(gap.value if gap else None), bad=gap is not None and not gap.holds),
        Cell(number(gap.bound if gap else None)),
        Cell(seconds(waits[longest]), longest),
    ]  # fmt: skip


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{tenant} {share(value)}" for tenant, value in shares.items())


def objectives(summary: Summary, limits: Mapping[str, float]) -> list[Table]:
    if not limits:
        return []
    wanted = ", ".join(f"{name} {seconds(value)}" for name, value in limits.items())
    rows = []
    for stage in summary.stages:
        for group in stage.groups:
            good, name = group.goodput, stage.name if group.by == "all" else f"· {group.name}"
            missed = ", ".join(f"{count} {what}" for what, count in good.missed.items())
            value = None if good.share is None else good.share.value
            rows.append([Cell(name), Cell(share(value)), Cell(number(good.per_s)), Cell(missed)])
    return [Table(("stage", "good", "good per s", "missed"), rows, f"Good: within {wanted}.")]


def generator_words(summary: Summary) -> list[str]:
    if summary.overhead.spoiled:
        return ["Its own lateness spoils this run: see the top of the page."]
    return ["It was fast enough for its figures to be the server's."]


def generator(summary: Summary) -> list[Table]:
    found, client = summary.overhead, summary.overhead.client
    rows = [["schedule lag", *map(seconds, (found.lag_p50_s, found.lag_p99_s, found.lag_max_s))]]
    if client is not None:
        lags = (client.loop_lag_p50_s, client.loop_lag_p99_s, client.loop_lag_max_s)
        rows.append(["timers late", *map(seconds, lags)])
        rows.append(["of a core", share(client.cpu_share), "", share(client.cpu_share_max)])
    return [Table(("", "p50, or mean", "p99", "most"), rows)]


def facts(run: Run, baseline: Run | None) -> list[Table]:
    runs = [run] if baseline is None else [run, baseline]
    columns = ["", "target"] if baseline is None else ["", "target", "baseline"]
    told = [_facts(one) for one in runs]
    rows = [[name, *(facts[name] for facts in told)] for name in told[0]]
    return [Table(columns, rows, words=True)]


def _facts(run: Run) -> dict[str, str]:
    server = run.server
    said = {
        "address": run.target,
        "server": _joined(server.kind, server.name, server.version),
        "model": _joined(server.model, server.profile),
        "precision": server.precision or "not told",
        "simulates": "nothing" if server.simulated == "false" else server.simulated or "not told",
        "context, canvas": f"{number(server.max_context)}, {number(server.canvas)} tokens",
    }
    said |= {name: found(run, name) or "not told" for name in NAMES}
    host = run.host
    said["load came from"] = f"{host.system} {host.machine}, {host.cpus} CPUs, Python {host.python}"
    said["generator"] = f"{run.generator}, dgemma-loadtest {run.version}, seed {run.seed}"
    return said


def _joined(*parts: str | None) -> str:
    return " ".join(part for part in parts if part) or "not told"
