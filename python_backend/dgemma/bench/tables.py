"""A benchmark's reports as one table, part by part.

Knows columns and units; computes shares of what was measured beside them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from dgemma.bench.report import Report, Speed


def tables(reports: Sequence[Report]) -> Iterator[Table]:
    """Of reports of one run on one device."""
    yield _ceilings(reports[0])
    yield _parity(reports)
    yield _speeds(reports)
    yield _parts(reports)
    yield _throughput(reports)
    yield _memory(reports)
    if any(report.peer for report in reports):
        yield _peers(reports)


def _ceilings(report: Report) -> Table:
    table = _table("ceiling, measured", ">", title=report.device.name)
    found = report.ceilings
    assert found is not None, "a benchmark measures them first"
    table.add_row("copy, read + written", f"{found.bandwidth_bytes_per_s / 1e12:.2f} TB/s")
    table.add_row("products in BF16", f"{found.bf16_flops_per_s / 1e12:.0f} TFLOPS")
    fp8 = "none" if found.fp8_flops_per_s is None else f"{found.fp8_flops_per_s / 1e12:.0f} TFLOPS"
    table.add_row("products in FP8", fp8)
    return table


def _parity(reports: Sequence[Report]) -> Table:
    table = _table(
        *("precision", ">operations", ">largest error", "of", ">limit", ""),
        title="kernels against plain torch",
    )
    for report in reports:
        worst = max(report.parity, key=lambda p: p.max_error)
        mark = "passed" if report.passed else "failed"
        numbers = (f"{worst.max_error:.1e}", worst.kind, f"{worst.limit:g}")
        table.add_row(report.engine.precision, str(len(report.parity)), *numbers, mark)
    return table


def _speeds(reports: Sequence[Report]) -> Table:
    table = _table(
        *("precision", ">rows", ">context", ">network, ms", ">with tail, ms"),
        *(">floor, ms", ">times the floor", ">of bandwidth", ">of BF16 rate"),
        title="a denoise pass",
    )
    for report in reports:
        for speed in report.speed:
            table.add_row(report.engine.precision, *_speed(report, speed))
    return table


def _speed(report: Report, speed: Speed) -> list[str]:
    found = report.ceilings
    assert found is not None and speed.read_bytes is not None and speed.operations is not None
    floor = 1e3 * speed.read_bytes / found.bandwidth_bytes_per_s
    rate = 1e3 * speed.operations / speed.pass_ms / found.bf16_flops_per_s
    return [
        *(str(speed.rows), str(speed.context)),
        *(f"{speed.engine_ms:.2f}", f"{speed.pass_ms:.2f}", f"{floor:.2f}"),
        f"{speed.pass_ms / floor:.2f}",
        f"{100 * floor / speed.pass_ms:.0f} %",
        f"{100 * rate:.0f} %",
    ]


def _parts(reports: Sequence[Report]) -> Table:
    names = list(dict.fromkeys(part.name for report in reports for part in report.parts))
    head = (f">{report.engine.precision}, ms" for report in reports)
    table = _table("part of a pass, one row", ">calls", *head)
    for name in names:
        found = [next((p for p in r.parts if p.name == name), None) for r in reports]
        calls = next(str(p.calls) for p in found if p is not None)
        table.add_row(name, calls, *("" if p is None else f"{p.ms:.3f}" for p in found))
    return table


def _throughput(reports: Sequence[Report]) -> Table:
    steps = sorted({t.steps for t in reports[0].throughput})
    head = (f">{n} steps{', fused' * fused}" for n in steps for fused in (False, True))
    table = _table("precision", ">rows", ">context", *head, title="tokens/s that passes amount to")
    for report in reports:
        for speed in report.speed:
            mine = {
                (t.steps, t.fused): t.tokens_per_s
                for t in report.throughput
                if (t.rows, t.context) == (speed.rows, speed.context)
            }
            rates = (f"{mine[n, fused]:.0f}" for n in steps for fused in (False, True))
            table.add_row(report.engine.precision, str(speed.rows), str(speed.context), *rates)
    return table


def _memory(reports: Sequence[Report]) -> Table:
    table = _table("precision", ">weights, GB", ">weights and K/V, GB", ">peak, GB")
    for report in reports:
        if (found := report.memory) is not None:
            sizes = (found.weights_bytes, found.estimated_bytes, found.peak_bytes)
            table.add_row(report.engine.precision, *(f"{size / 1e9:.2f}" for size in sizes))
    return table


def _peers(reports: Sequence[Report]) -> Table:
    table = _table("precision", "other system", ">ms a step", ">tokens/s", ">ours, ms", ">times")
    for report in reports:
        if (peer := report.peer) is None:
            continue
        system = f"{peer.system} {peer.version}"
        if peer.ms_per_step is None:
            table.add_row(report.engine.precision, system, peer.detail)
            continue
        ours = report.speed[0].pass_ms
        rates = (f"{peer.ms_per_step:.1f}", f"{peer.tokens_per_s:.0f}", f"{ours:.2f}")
        times = f"{peer.ms_per_step / ours:.1f}"
        table.add_row(report.engine.precision, system, *rates, times)
    return table


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left")
    return table
