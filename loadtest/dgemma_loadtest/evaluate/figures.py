"""From a summary of one stage to the figures of a cell."""

from __future__ import annotations

from dgemma_loadtest.evaluate.results import Figures
from dgemma_loadtest.metrics.quantiles import Quantile
from dgemma_loadtest.metrics.summary import StageSummary
from dgemma_loadtest.platforms import Platform

_HOUR_S = 3600


def figures(
    stage: StageSummary, platform: Platform | None, victim_ratio: float | None = None
) -> Figures:
    """Cost and energy where the platform is known."""
    group, fairness = stage.groups[0], stage.fairness
    rate, latency, found = group.throughput.tokens_per_s, group.latency, group.tokens
    gap = fairness.gap if fairness else None
    return Figures(
        tokens_per_s=rate,
        tokens_per_s_user=_value(group.throughput.tokens_per_s_user.p50),
        ttfb_p50_s=_value(latency.ttfb_s.p50),
        ttfb_p99_s=_value(latency.ttfb_s.p99),
        block_p50_s=_value(latency.block_s.p50),
        e2e_p50_s=_value(latency.e2e_s.p50),
        e2e_p99_s=_value(latency.e2e_s.p99),
        waste=found.waste,
        steps=found.steps.mean,
        usd_per_million=usd_per_million(platform, rate),
        kwh_per_million=kwh_per_million(platform, rate),
        jain=fairness.jain if fairness else None,
        service_gap=gap.value if gap else None,
        service_gap_bound=gap.bound if gap else None,
        victim_p99_ratio=victim_ratio,
        longest_wait_s=max(fairness.longest_wait_s.values()) if fairness else None,
    )


def usd_per_million(platform: Platform | None, tokens_per_s: float | None) -> float | None:
    if platform is None or not tokens_per_s:
        return None
    return platform.usd_per_hour / _HOUR_S / tokens_per_s * 1e6


def kwh_per_million(platform: Platform | None, tokens_per_s: float | None) -> float | None:
    if platform is None or not tokens_per_s:
        return None
    return platform.watts / 1e3 / _HOUR_S / tokens_per_s * 1e6


def _value(found: Quantile | None) -> float | None:
    return None if found is None else found.value
