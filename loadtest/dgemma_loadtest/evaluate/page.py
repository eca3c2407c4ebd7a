"""The report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from dgemma_loadtest.evaluate import plots, publications, tables
from dgemma_loadtest.evaluate.results import Results
from dgemma_loadtest.modelled.roofline import calibrated
from dgemma_loadtest.platforms import Platform
from dgemma_loadtest.report.page import Notice, Page, Section

REPORT = "evaluation.html"


def page(results: Results, platforms: Sequence[Platform]) -> Page:
    kinds = sorted({cell.basis for cell in results.cells})
    crossing = plots.crossovers(results)
    return Page(
        "What DiffusionGemma is worth, and where",
        f"{results.workload}; {results.day}",
        kinds,
        _notices(results, kinds),
        [
            Section("The crossover", tables=tables.crossovers(results), plots=crossing),
            Section("Tokens per second", plots=[*plots.totals(results), *plots.costs(results)]),
            Section(
                "What the model says of published figures",
                _model_words(),
                tables.predictions(publications.predictions(platforms)),
            ),
            Section("Tenants", tables=tables.tenants(results)),
            Section("Figures", tables=tables.figures(results)),
            Section("Platforms", tables=tables.machines(platforms)),
        ],
        (results.tool,),
    )


def _notices(results: Results, kinds: Sequence[str]) -> list[Notice]:
    said = []
    if "measured" not in kinds:
        said.append(
            Notice(
                "Nothing here was measured on a GPU: figures are a model's, or somebody else's for "
                "other software. Where the two models cross depends on how well kernels use the "
                "GPU with many canvases in a pass, which nobody has published."
            )
        )
    spoiled = sorted({c.platform for c in results.cells if c.spoiled})
    if spoiled:
        said.append(Notice(f"Spoiled by a slow load generator: {', '.join(spoiled)}", True))
    return said


def _model_words() -> list[str]:
    found = calibrated("sum")
    return [
        "A pass of diffusion takes, by the sum, bytes / bandwidth + operations / "
        f"({found.efficiency:.2f} × peak); by the max, {found.overhead:.2f} × the longer of bytes "
        "/ bandwidth and operations / peak. Both are set by one figure: 11.7 ms a pass on H200 in "
        "FP8 with one request and 16 fixed steps.",
        f"A token of the autoregressive model takes {1e3 * found.fixed_s:.2f} ms beside that, "
        "which is set by its 213 tokens/s on H200. If that time were in a pass of diffusion too, "
        "four requests on DGX Spark would give 2.2 times the tokens of one: more than was "
        "published.",
    ]
