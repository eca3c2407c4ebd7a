"""Goodput: what is left of the throughput when only answers that were fast enough count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.metrics.bootstrap import Estimate, share_of
from dgemma_loadtest.metrics.latency import between_blocks, first_block
from dgemma_loadtest.records import Outcome, Record

NAMES = ("ttfb", "block", "e2e")
_LIMIT = re.compile(r"(\w+)=([0-9]*\.?[0-9]+)(ms|s)?")


@dataclass(frozen=True)
class Slo:
    """Limits in seconds; None is no limit. `block` holds for every gap between blocks."""

    ttfb: float | None = None
    block: float | None = None
    e2e: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """`ttfb=0.5,block=300ms`: seconds, or ms. Raises InputError."""
        limits: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = _LIMIT.fullmatch(part)
            if match is None or match[1] not in NAMES:
                raise InputError(
                    f"slo: got {part!r}; allowed: NAME=SECONDS or NAME=NUMBERms with "
                    f"{', '.join(NAMES)}, such as ttfb=0.5,block=300ms"
                )
            limits[match[1]] = float(match[2]) / (1e3 if match[3] == "ms" else 1)
            if limits[match[1]] <= 0:
                raise InputError(f"slo: {match[1]}: must be above 0 seconds")
        return cls(**limits)

    def limits(self) -> dict[str, float]:
        found = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Goodput:
    """Of requests that the scenario did not cancel itself."""

    requests: int
    good: int
    share: Estimate | None
    per_s: float | None
    missed: dict[str, int]  # by what was missed: a limit, or an outcome that is not ok


def verdict(record: Record, slo: Slo) -> str | None:
    """None where the request was good, else what it missed first."""
    if record.outcome is not Outcome.OK:
        return record.outcome.value
    first = first_block(record)
    if slo.ttfb is not None and (first is None or first > slo.ttfb):
        return "ttfb"
    if slo.block is not None and max(between_blocks(record), default=0.0) > slo.block:
        return "block"
    if slo.e2e is not None and record.ended_s - record.scheduled_s > slo.e2e:
        return "e2e"
    return None


def goodput(records: Sequence[Record], slo: Slo, seconds: float) -> Goodput:
    verdicts = [verdict(r, slo) for r in records if r.outcome is not Outcome.CANCELLED]
    missed: dict[str, int] = {}
    for found in verdicts:
        if found is not None:
            missed[found] = missed.get(found, 0) + 1
    good = len(verdicts) - sum(missed.values())
    return Goodput(
        requests=len(verdicts),
        good=good,
        share=share_of(good, len(verdicts)),
        per_s=good / seconds if seconds else None,
        missed=missed,
    )
