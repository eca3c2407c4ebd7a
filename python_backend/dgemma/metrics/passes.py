"""What the scheduler's counts, looked at from time to time, add to the metrics.

Knows two looks at the same counts and their difference; the scheduler only ever counts on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from operator import attrgetter

from dgemma.metrics.exporter import Exporter
from dgemma.scheduler.stats import SchedulerStats

_COUNTERS = {  # of SchedulerStats
    "dgemma_pass_seconds_total": "pass_s",
    "dgemma_reruns_total": "reruns",
    "dgemma_preemptions_total": "preemptions",
    "dgemma_prefix_cache_lookups_total": "cache.lookups",
    "dgemma_prefix_cache_hits_total": "cache.hits",
    "dgemma_prefix_cache_evictions_total": "cache.evictions",
}


class PassMetrics:
    """For one thread."""

    def __init__(self, exporter: Exporter, model: str) -> None:
        self._to, self._model = exporter, model
        self._seen = SchedulerStats()

    def look(self, stats: SchedulerStats) -> None:
        """Take note of what the scheduler has done since the last look."""
        seen, self._seen = self._seen, stats
        self._to.set("num_requests_running", stats.running, self._model)
        self._to.set("num_requests_waiting", stats.waiting, self._model)
        self._to.set("num_request_max", stats.slots, self._model)
        self._to.set("gpu_cache_usage_perc", stats.running / max(1, stats.slots), self._model)
        self._to.set("dgemma_prefix_cache_bytes", stats.cache.nbytes)
        for name, field in _COUNTERS.items():
            counted = attrgetter(field)
            self._to.add(name, counted(stats) - counted(seen))
        self._to.add("dgemma_rows_total", stats.encode_rows - seen.encode_rows, "encode")
        self._to.add("dgemma_rows_total", stats.denoise_rows - seen.denoise_rows, "denoise")
        before = _by_width(seen.passes_by_rows)
        for width, passes in _by_width(stats.passes_by_rows).items():
            self._to.add("dgemma_passes_total", passes - before[width], width)


def width(rows: int) -> str:
    """The label of a pass of so many rows, 1 or more: powers of two keep them few."""
    most = 1 << (rows - 1).bit_length()
    return str(most) if most <= 2 else f"{most // 2 + 1}-{most}"


def _by_width(passes_by_rows: Mapping[int, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for rows, passes in passes_by_rows.items():
        found[width(rows)] += passes
    return found
