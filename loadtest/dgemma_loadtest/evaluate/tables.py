"""The tables of an evaluation; every figure says what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dgemma_loadtest.evaluate.publications import LIMIT, Prediction
from dgemma_loadtest.evaluate.results import Cell as Line
from dgemma_loadtest.evaluate.results import Crossover, Results
from dgemma_loadtest.platforms import HOURS, KWH_USD, YEARS, Platform
from dgemma_loadtest.report.page import Cell, Table
from dgemma_loadtest.report.words import MISSING, number, seconds, share

SHOWN = (1, 4, 16, 64)  # requests at once; the file has all
READING_NAMES = {"sum": "sum", "max": "max", None: ""}


def crossovers(results: Results) -> list[Table]:
    rows = []
    keys = dict.fromkeys((c.platform, c.precision, c.reading, c.how) for c in results.crossovers)
    for key in keys:
        theirs = [
            c for c in results.crossovers if (c.platform, c.precision, c.reading, c.how) == key
        ]
        asked = next((c for c in theirs if not c.steps.endswith("fixed")), theirs[0])
        fixed = [c for c in theirs if c is not asked]
        rows.append(
            [
                Cell(f"{key[0]}-{key[1]}", kind=asked.basis),
                Cell(READING_NAMES[key[2]]),
                Cell(number(asked.users), _interval(asked)),
                *(Cell(number(c.users)) for c in fixed),
            ]
        )
    fixed_names = [c.steps for c in results.crossovers if c.steps.endswith("fixed")]
    columns = ("platform", "reading", "steps as published", *dict.fromkeys(fixed_names))
    caption = "Requests at once from which autoregressive decoding gives more tokens per second."
    return [Table(columns, rows, caption)] if rows else []


def _interval(found: Crossover) -> str:
    if found.users is None:
        return "never, as far as was looked"
    if found.low is None or found.high is None:
        return ""
    return f"95 %: {number(found.low)} to {number(found.high)}"


def predictions(found: Sequence[Prediction]) -> list[Table]:
    rows = [
        [
            Cell(f"{one.platform}, {one.what}", one.source),
            Cell(one.reading),
            Cell(_range(one.published, one.unit), kind="published"),
            Cell(_range(one.predicted, one.unit), kind="simulated"),
            _verdict(one),
        ]
        for one in found
    ]
    columns = ("what", "reading", "published", "model", "verdict")
    caption = (
        f"The model is set by H200 in FP8 alone. It agrees within {share(LIMIT)}, or no agreement "
        "is claimed, because the source leaves steps or precision open: then it shows a range."
    )
    return [Table(columns, rows, caption, words=True)] if rows else []


def _range(pair: tuple[float, float], unit: str) -> str:
    low, high = map(number, pair)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _verdict(found: Prediction) -> Cell:
    if found.calibrated:
        return Cell("set by it")
    if found.agrees is None:
        return Cell("no agreement claimed")
    off = "within" if found.off == 0 else f"{100 * found.off:+.1f} %"
    return Cell(off if found.agrees else f"{off}: does not agree", bad=not found.agrees)


def figures(results: Results) -> list[Table]:
    columns = (
        *("platform", "model", "at once", "tokens/s", "a user", "first, p50", "end, p50", "p99"),
        *("waste", "$ per million", "kWh per million"),
    )
    rows = [_row(c) for c in results.cells if c.tenancy == "single" and _is_shown(c)]
    caption = "Useful tokens. Of the model both readings are given. The file has every figure."
    return [Table(columns, rows, caption)] if rows else []


def _is_shown(cell: Line) -> bool:
    return cell.basis != "simulated" or cell.users in SHOWN or cell.reading is None


def _row(cell: Line) -> list[Cell]:
    f = cell.figures
    note = cell.how if cell.reading is None else f"{cell.how}, {cell.reading}"
    precision = cell.precision or "precision not told"
    return [
        Cell(f"{cell.platform}, {precision}", note, cell.basis, bad=cell.spoiled),
        Cell(cell.model, f"{cell.steps} steps" if cell.steps else ""),
        Cell(str(cell.users)),
        *map(Cell, (number(f.tokens_per_s), number(f.tokens_per_s_user))),
        *(Cell(seconds(value)) for value in (f.ttfb_p50_s, f.e2e_p50_s, f.e2e_p99_s)),
        Cell(share(f.waste)),
        Cell(number(f.usd_per_million)),
        Cell(number(f.kwh_per_million)),
    ]


def tenants(results: Results) -> list[Table]:
    columns = (
        *("platform", "model", "queue", "Jain's index", "service gap", "its bound"),
        *("steady tenant's p99, beside over alone", "longest wait"),
    )
    rows = [list(_tenants(c)) for c in results.cells if c.tenancy == "multi"]
    caption = "A steady tenant with 20 users beside one with 60 that floods, equal weights."
    return [Table(columns, rows, caption)] if rows else []


def _tenants(cell: Line) -> Iterator[Cell]:
    f = cell.figures
    gap, bound = f.service_gap, f.service_gap_bound
    yield Cell(f"{cell.platform}-{cell.precision}", f"{cell.how}, {cell.reading}", cell.basis)
    yield Cell(cell.model)
    yield Cell(cell.policy or MISSING)
    yield Cell(MISSING if f.jain is None else f"{f.jain:.3f}")
    yield Cell(number(gap), bad=gap is not None and bound is not None and gap > bound)
    yield Cell(number(bound))
    yield Cell(MISSING if f.victim_p99_ratio is None else f"{f.victim_p99_ratio:.2f} ×")
    yield Cell(seconds(f.longest_wait_s))


def machines(platforms: Sequence[Platform]) -> list[Table]:
    rows = [
        [
            Cell(p.name, p.source),
            Cell(f"{p.bandwidth_bytes_per_s / 1e12:.3g} TB/s"),
            Cell(f"{p.bf16_flops_per_s / 1e12:.0f}, {p.fp8_flops_per_s / 1e12:.0f} TFLOP/s"),
            Cell(f"{p.watts:.0f} W", p.watts_source),
            Cell(f"${p.usd_per_hour:.2f} an hour", p.price.source),
        ]
        for p in platforms
    ]
    caption = (
        f"What is bought is spread over {YEARS} × {HOURS} hours, with power at ${KWH_USD} per kWh."
    )
    columns = ("platform", "memory", "BF16, FP8", "power", "price")
    return [Table(columns, rows, caption, words=True)]
