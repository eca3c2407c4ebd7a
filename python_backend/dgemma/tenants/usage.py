"""What requests have cost: one request, and sums of many by tenant.

Knows nothing of files, nor of how a request comes to its costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Entry:
    """One request that has ended, or several that were rejected."""

    at: datetime
    tenant: str
    outcome: str  # stop, length, cancelled, rejected or failed
    prompt_tokens: Count
    completion_tokens: Count
    service_units: Count  # rows of passes, whatever came of them
    requests: Count = 1


@dataclass(frozen=True)
class Totals:
    """What some requests of one tenant have cost together."""

    requests: Count = 0
    rejected: Count = 0  # of the requests
    failed: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    service_units: Count = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, entry: Entry) -> Totals:
        return cls(
            entry.requests,
            entry.requests if entry.outcome == "rejected" else 0,
            entry.requests if entry.outcome == "failed" else 0,
            entry.prompt_tokens,
            entry.completion_tokens,
            entry.service_units,
        )


ByTenant = dict[str, Totals]


def total(entries: Iterable[Entry]) -> ByTenant:
    """Sums by tenant."""
    return merged({entry.tenant: Totals.of(entry)} for entry in entries)


def merged(parts: Iterable[ByTenant]) -> ByTenant:
    sums: ByTenant = {}
    for part in parts:
        for tenant, totals in part.items():
            sums[tenant] = sums.get(tenant, Totals()) + totals
    return sums
