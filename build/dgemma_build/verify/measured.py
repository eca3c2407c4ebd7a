"""On which platforms engines were executed, by the reports that operators shared.

Knows files of `docs/measurements/`; a platform without one of its own was never executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dgemma.bench.report import Report, read_report
from dgemma.machine import TORCH
from dgemma.targets import Target
from dgemma.targets.products import is_product

NEVER = "never executed"
CPU = "this machine's CPU"


def reports(directory: Path) -> list[Report]:
    """Every report in a directory; ConfigurationError names one that is none."""
    files = sorted(directory.glob("*.json"))
    return [read_report(path) for path in files if not path.name.startswith("schema-")]


def measured_platforms(
    found: Sequence[Report], targets: Sequence[Target]
) -> Mapping[str, Sequence[Report]]:
    """Product -> the reports in which it ran passes and all of them were right; none: never."""
    platforms: dict[str, list[Report]] = {}
    ran = [report for report in found if report.executed and report.passed]
    any_gpu = [target.name for target in targets if target.flavour == TORCH]
    for target in targets:
        names = [target.name, *any_gpu] if target.has_plan else [target.name]
        mine = [report for report in ran if report.engine.target in names]
        for gpu in target.gpus:
            platforms[gpu.name] = [r for r in mine if is_product(gpu, r.device.name)]
        if not target.on_gpu:
            platforms[CPU] = mine
    return platforms


def state(found: Sequence[Report]) -> str:
    """What a table says of a platform."""
    if not found:
        return NEVER
    days = max(report.day for report in found)
    return f"executed: {', '.join(sorted(set(map(_what, found))))}; last on {days}"


def _what(report: Report) -> str:
    by = " by kernels" if report.software.runtime == TORCH else ""
    return report.engine.precision + by
