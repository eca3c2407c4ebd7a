"""Figures as a reader wants them: three digits and a unit."""

from __future__ import annotations

from dgemma_loadtest.metrics.bootstrap import Estimate
from dgemma_loadtest.metrics.quantiles import Quantile

MISSING = "–"


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.0f} µs"


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return MISSING
    said = f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 else f"{value:.3g}"
    return f"{said} {unit}".strip()


def share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.3g} %"


def quantile(found: Quantile | None) -> str:
    if found is None:
        return MISSING
    return ("≥ " if found.at_least else "") + seconds(found.value)


def between(found: Quantile | None) -> str:
    """Its interval of confidence."""
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{seconds(found.low)} to {seconds(found.high)}"


def estimate(found: Estimate | None) -> str:
    if found is None:
        return MISSING
    if found.low is None or found.high is None:
        return number(found.value)
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"
