"""Metrics as Triton's Python backend takes them, so that Triton exports them itself.

Knows `triton_python_backend_utils`, which exists only inside Triton's stub process and is passed
in; knows nothing of what is counted. A call is a message to Triton's process, some 15 to 40 µs
during which other threads run: not for the device thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from dgemma.metrics.families import Family


class Exporter(Protocol):
    """Takes values by a family's name; `labels` are values in the order of the family's labels."""

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Count on, by 0 or more."""
        ...

    def set(self, name: str, value: float, *labels: str) -> None: ...
    def observe(self, name: str, value: float, *labels: str) -> None: ...
    def close(self) -> None:
        """Export nothing any more."""
        ...


class TritonExporter:
    """For one thread. Families without labels are exported from the start, as 0."""

    def __init__(self, pb_utils: Any, families: Iterable[Family]) -> None:
        kinds = pb_utils.MetricFamily
        codes = {"counter": kinds.COUNTER, "gauge": kinds.GAUGE, "histogram": kinds.HISTOGRAM}
        self._families = {
            family.name: (
                family,
                kinds(name=family.name, description=family.help, kind=codes[family.kind]),
            )
            for family in families
        }
        self._metrics: dict[tuple[str, ...], Any] = {}  # by name and labels
        for family, _ in self._families.values():
            if not family.labels:
                self._metric(family.name)

    def add(self, name: str, amount: float, *labels: str) -> None:
        metric = self._metric(name, *labels)
        if amount:
            metric.increment(float(amount))

    def set(self, name: str, value: float, *labels: str) -> None:
        self._metric(name, *labels).set(float(value))

    def observe(self, name: str, value: float, *labels: str) -> None:
        self._metric(name, *labels).observe(float(value))

    def close(self) -> None:
        # Triton wants a family to go after what is in it.
        self._metrics.clear()
        self._families.clear()

    def _metric(self, *key: str) -> Any:
        if key not in self._metrics:
            family, made = self._families[key[0]]
            labels = dict(zip(family.labels, key[1:], strict=True))
            buckets = {"buckets": list(map(float, family.buckets))} if family.buckets else {}
            self._metrics[key] = made.Metric(labels=labels, **buckets)
        return self._metrics[key]
