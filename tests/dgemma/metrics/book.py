"""An exporter that keeps what it is given, for tests of the arithmetic."""

from __future__ import annotations

from collections import defaultdict

from dgemma.metrics.families import FAMILIES

_FAMILIES = {family.name: family for family in FAMILIES}


class Book:
    """`counts`, `gauges` and `observed` by name and labels; holds everybody to the families."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], float] = defaultdict(float)
        self.gauges: dict[tuple[str, ...], float] = {}
        self.observed: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def add(self, name: str, amount: float, *labels: str) -> None:
        assert amount >= 0
        self.counts[self._key("counter", name, labels)] += amount

    def set(self, name: str, value: float, *labels: str) -> None:
        self.gauges[self._key("gauge", name, labels)] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        self.observed[self._key("histogram", name, labels)].append(value)

    def close(self) -> None:
        pass

    def labels(self, name: str) -> set[tuple[str, ...]]:
        """Those that a family has values for."""
        keys = [*self.counts, *self.gauges, *self.observed]
        return {tuple(rest) for first, *rest in keys if first == name}

    def _key(self, kind: str, name: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        family = _FAMILIES[name]
        assert family.kind == kind and len(family.labels) == len(labels)
        return name, *labels
