"""A run as it goes on, and its figures at the end, on a terminal or as plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dgemma_loadtest.metrics.quantiles import Distribution, Quantile
from dgemma_loadtest.metrics.summary import Group, StageSummary, Summary

PLAIN_EVERY_S = 5.0
WIDTH = 180  # where nobody watches, a table is not cut
Event = dict[str, Any]


class Display:
    """Shows events: a bar where somebody watches, a line now and then where nobody does."""

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label
        self._last, self._stage = 0.0, ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[state]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=1.0, state="connecting …")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: Event) -> None:
        match event["event"]:
            case "server":
                self._say(f"{self._label}: {served(event['server'], event['fit'])}")
            case "progress":
                self._progress(event)

    def _progress(self, event: Event) -> None:
        stage = f"{event['stage']} ({event['stage_number']}/{event['stages']})"
        if self._bar is not None:
            share = event["elapsed_s"] / event["duration_s"] if event["duration_s"] else 0.0
            self._bar.update(
                self._task,
                description=f"{self._label}: {stage}",
                completed=min(share, 1.0),
                state=state(event),
            )
            return
        now = time.monotonic()
        if stage != self._stage or now - self._last >= PLAIN_EVERY_S:
            self._last, self._stage = now, stage
            self._say(f"{self._label}: {stage}, {event['elapsed_s']:.0f} s: {state(event)}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def console(*, stderr: bool = False) -> Console:
    """As wide as the terminal, or as a table needs where there is none."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=WIDTH)


def show_result(result: Summary, on: Console) -> None:
    """The table and what has to be said beside it."""
    on.print(table(result))
    for line in remarks(result):
        on.print(line, highlight=False, markup=False, soft_wrap=True)


def served(server: Event, fit: Event) -> str:
    """Who answers, in a line."""
    parts = [server.get(key) for key in ("name", "version", "model", "profile")]
    said = " ".join(str(part) for part in parts if part) or server["kind"]
    if server.get("simulated") not in (None, "false"):
        said += f", simulated {server['simulated']}"
    if fit["context"]:
        said += f"; lengths are fitted to {fit['context']} tokens of about "
        said += f"{fit['characters']:.1f} characters"
    return said


def state(event: Event) -> str:
    """Counts and the latest latency, in a line."""
    outcomes = ", ".join(f"{count} {name}" for name, count in event["outcomes"].items())
    said = f"{event['open']} open, {outcomes or 'none ended'}"
    if event["ttfb_p50_s"] is not None:
        said += f", first block {seconds(event['ttfb_p50_s'])}"
    if event["lag_p99_s"] is not None:
        said += f", lag {seconds(event['lag_p99_s'])}"
    return said


def table(result: Summary) -> Table:
    """One line a stage, and one for each tenant of a stage with several."""
    made = Table(
        title=f"{result.scenario} on {result.target}: {result.kind}"
        + ("" if result.state == "complete" else f", {result.state}"),
        caption="medians; p99 behind them where so said; times from when a request was due",
        box=SIMPLE,
        title_justify="left",
        caption_justify="left",
    )
    for name, value in _COLUMNS.items():
        made.add_column(name, justify="left" if value is None else "right", no_wrap=True)
    for stage in result.stages:
        for group in stage.groups:
            if group.by in ("all", "tenant"):
                name = stage.name if group.by == "all" else f"  {group.name}"
                made.add_row(name, *(of(group) for of in _COLUMNS.values() if of))
    return made


def remarks(result: Summary) -> list[str]:
    """What has to be said beside the table."""
    said = [f"{stage.name}: {_fairness(stage)}" for stage in result.stages if stage.fairness]
    if result.victim is not None:
        v = result.victim
        said.append(
            f"{v.tenant}: p99 {seconds(v.alone_p99_s)} alone, {seconds(v.beside_p99_s)} beside "
            f"the aggressor: {v.ratio.value:.2f} ×"
            + ("" if v.ratio.low is None else f" ({v.ratio.low:.2f} to {v.ratio.high:.2f})")
        )
    lag = result.overhead
    if lag.lag_p99_s is not None and lag.lag_max_s is not None:
        cpu = f", {lag.client.cpu_share:.0%} of a core" if lag.client else ""
        said.append(
            f"the generator sent {seconds(lag.lag_p99_s)} late (p99; {seconds(lag.lag_max_s)} at "
            f"most){cpu}"
        )
    said += [f"SPOILED: {reason}" for reason in lag.reasons]
    if result.kind == "simulated":
        said.append("simulated: no figure here was measured on a GPU")
    return [*said, *result.notes]


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def _fairness(stage: StageSummary) -> str:
    found = stage.fairness
    assert found is not None
    if found.jain is None:
        return "tenants never waited at the same time for long: nothing to share"
    waits = ", ".join(f"{t} {seconds(s)}" for t, s in found.longest_wait_s.items())
    said = f"Jain {found.jain:.3f} over {found.backlogged_s:.1f} s in which all waited"
    if found.gap is not None:
        sign = "within" if found.gap.holds else "ABOVE"
        said += f", service gap {found.gap.value:.0f} ({sign} its bound, {found.gap.bound:.0f})"
    return f"{said}, longest waits {waits}"


def _counts(group: Group) -> str:
    bad = [f"{n} {name}" for name, n in group.outcomes.items() if name != "ok"]
    return ", ".join([str(group.outcomes.get("ok", 0)), *bad])


def _times(sample: Distribution) -> str:
    return f"{_point(sample.p50)} / {_point(sample.p99)}" if sample.count else "-"


def _point(found: Quantile | None) -> str:
    if found is None:
        return "-"
    return ("≥ " if found.at_least else "") + seconds(found.value)


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _user_rate(group: Group) -> str:
    middle = group.throughput.tokens_per_s_user.p50
    return "-" if middle is None else f"{middle.value:.0f}"


_COLUMNS: dict[str, Callable[[Group], str] | None] = {
    "stage": None,
    "answers": _counts,
    "per s": lambda group: _number(group.throughput.completed_per_s, ".2f"),
    "tokens/s": lambda group: _number(group.throughput.tokens_per_s, ".0f"),
    "a user": _user_rate,
    "first block / p99": lambda group: _times(group.latency.ttfb_s),
    "block / p99": lambda group: _times(group.latency.block_s),
    "end / p99": lambda group: _times(group.latency.e2e_s),
    "steps": lambda group: _number(group.tokens.steps.mean),
    "waste": lambda group: _number(group.tokens.waste, ".0%"),
    "good": lambda group: (
        "-" if group.goodput.share is None else f"{group.goodput.share.value:.1%}"
    ),
}
