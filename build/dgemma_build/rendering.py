"""Targets and estimates as tables and as JSON.

Knows columns, units and footnotes; every number comes from elsewhere. GB are 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from dgemma.roofline.published import UNSTATED_STEPS, Comparison
from dgemma.targets import Target
from dgemma_build.estimate import CONTEXT, ConsumerBar, Estimate

GB = 1e9


def targets_table(targets: Sequence[Target], reasons: Mapping[str, str | None]) -> Table:
    """`reasons` says per target why it cannot be built here; None where it can."""
    table = _table("target", "flavour", "GPUs", "precisions", "rows × context", "built here")
    for t in targets:
        gpus = ", ".join(gpu.name for gpu in t.gpus) or ("any GPU" if t.on_gpu else "any host")
        reason = reasons[t.name]
        table.add_row(
            t.name,
            t.flavour,
            gpus,
            ", ".join(t.precisions),
            f"{t.max_rows} × {t.max_context}",
            "yes" if reason is None else f"no: {reason}",
        )
    return table


def targets_json(
    targets: Sequence[Target], reasons: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    return [
        t.model_dump(mode="json")
        | {"buildable": reasons[t.name] is None, "why_not": reasons[t.name]}
        for t in targets
    ]


def memory_table(estimates: Sequence[Estimate]) -> Table:
    """What fits."""
    first = estimates[0].envelope
    used = f"{first.slots} slot{'s' if first.slots > 1 else ''} at {first.context}"
    table = _table(
        *("GPU", "target", "precision", ">usable GB", ">weights GB", f">{used}, GB"),
        *("fits", f">most slots at {first.context}", "rows × context that fit"),
    )
    for e, gpu in _grouped(estimates, table):
        weights = sum(b.bytes for b in e.buffers if b.name.startswith("weights: "))
        table.add_row(
            gpu,
            e.target.name,
            e.precision,
            f"{e.gpu.usable_bytes / GB:.1f}",
            f"{weights / GB:.1f}",
            f"{e.used_bytes / GB:.1f}",
            "yes" if e.fits else "no",
            str(e.slots),
            ", ".join(f"{rows} × {context}" for rows, context in e.supported) or "none",
        )
    return table


def speed_table(estimates: Sequence[Estimate]) -> Table:
    """How fast it can be at most, with what others published beside it; of known bandwidths."""
    known = [e for e in estimates if e.floor_ms is not None]
    steps = list(known[0].tokens_per_s)
    table = _table(
        *("GPU", "precision", ">TB/s", ">GB per pass", ">floor, ms", ">+ gather, ms"),
        *(f">tokens/s, {n} steps" if n == steps[0] else f">{n}" for n in steps),
        *("published, tokens/s", ">of the floor"),
    )
    for e, gpu in _grouped(known, table):
        assert e.floor_ms is not None and e.gather_ms is not None
        table.add_row(
            gpu,
            e.precision,
            f"{(e.gpu.bandwidth_bytes_per_s or 0) / 1e12:.3g}",
            f"{e.moved.floor / GB:.2f}",
            f"{e.floor_ms:.1f}",
            f"{e.gather_ms:.1f}",
            *(f"{e.tokens_per_s[n]:.0f}" for n in steps),
            "\n".join(f"{c.published.tokens_per_s:g} {c.published.system}" for c in e.comparisons),
            "\n".join(_share(c) for c in e.comparisons),
        )
    return table


SPEED_NOTES = (
    "Floor: all weights, the embedding twice (LM head and soft embedding) and the K/V of the "
    "context, over the bandwidth. Gather: copying contexts out of the pools, until kernels read "
    "them there. Tokens/s at the floor, the commit fused with the next canvas's first step.",
    "Published figures are other people's, for other software that pays a pass of its own for "
    "each commit; their share of the floor is of empty contexts. "
    f"≈: the source leaves steps or precision open; {UNSTATED_STEPS} steps and the precision of "
    "the line are assumed, so that more steps mean a larger share.",
)


def bar_line(bar: ConsumerBar) -> str:
    limit, margin = bar.limit_bytes / GB, bar.margin_bytes / GB
    verdict = f"under it by {margin:.2f} GB" if bar.holds else f"over it by {-margin:.2f} GB"
    room = f"at most {bar.capacity}" if bar.capacity < bar.tokens else f"all {bar.tokens}"
    return (
        f"int4 of all linear layers with one slot of {CONTEXT} tokens takes "
        f"{bar.used_bytes / GB:.2f} GB; the published footprint for consumer cards is "
        f"{limit:.0f} GB: {verdict}. Counted is room for {room} tokens of a pass on one expert, "
        f"{bar.even} being an even share."
    )


def buffers_table(estimate: Estimate) -> Table:
    """Every buffer of one estimate; of those that share a phase only the largest phase counts."""
    table = _table("buffer", ">MB", "lives")
    for buffer in estimate.buffers:
        if buffer.bytes:
            table.add_row(buffer.name, f"{buffer.bytes / 1e6:.1f}", buffer.phase or "always")
    table.add_row("together, with the largest phase", f"{estimate.used_bytes / 1e6:.1f}", "")
    table.title = f"{estimate.gpu.name}, {estimate.precision}: {_envelope(estimate)}"
    table.title_justify = "left"
    return table


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    e = estimate
    return {
        "target": e.target.name,
        "gpu": e.gpu.name,
        "precision": e.precision,
        "envelope": asdict(e.envelope),
        "usable_bytes": e.gpu.usable_bytes,
        "used_bytes": e.used_bytes,
        "fits": e.fits,
        "most_slots": e.slots,
        "supported": [{"rows": rows, "context": context} for rows, context in e.supported],
        "buffers": [asdict(buffer) for buffer in e.buffers],
        "bytes_per_pass": asdict(e.moved) | {"floor": e.moved.floor},
        "bandwidth_bytes_per_s": e.gpu.bandwidth_bytes_per_s,
        "floor_ms": e.floor_ms,
        "gather_ms": e.gather_ms,
        "tokens_per_s": {str(steps): speed for steps, speed in e.tokens_per_s.items()},
        "published": [
            c.published.model_dump()
            | {
                "compared_at_steps": c.steps,
                "ms_per_pass": c.ms_per_pass,
                "fraction_of_floor": c.fraction_of_floor,
                "exact": c.exact,
            }
            for c in e.comparisons
        ],
    }


def bar_json(bar: ConsumerBar) -> dict[str, Any]:
    return asdict(bar) | {"margin_bytes": bar.margin_bytes, "holds": bar.holds}


def _share(comparison: Comparison) -> str:
    sign = "" if comparison.exact else "≈ "
    return f"{sign}{100 * comparison.fraction_of_floor:.0f} %"


def _envelope(estimate: Estimate) -> str:
    e = estimate.envelope
    return f"{e.slots} × {e.context} tokens, {e.rows} rows"


def _grouped(estimates: Sequence[Estimate], table: Table) -> Iterator[tuple[Estimate, str]]:
    """Each with its GPU's name where that is new, and a line between two GPUs."""
    last = None
    for index, e in enumerate(sorted(estimates, key=_place(estimates))):
        if index and e.gpu.name != last:
            table.add_section()
        yield e, "" if e.gpu.name == last else e.gpu.name
        last = e.gpu.name


def _place(estimates: Sequence[Estimate]) -> Any:
    """Estimates of one GPU together, GPUs in order of appearance."""
    order = {name: i for i, name in enumerate(dict.fromkeys(e.gpu.name for e in estimates))}
    return lambda e: order[e.gpu.name]


def _table(*columns: str) -> Table:
    """A column that starts with > holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name[0] == ">" else "left")
    return table
