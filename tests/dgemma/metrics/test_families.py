from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.front import metrics as front
from dgemma.metrics.families import FAMILIES, OUTCOMES, Family
from dgemma.metrics.requests import MOST_TENANTS

PAGE = (Path(__file__).resolve().parents[3] / "python_backend" / "metrics.md").read_text()
ALL = (*FAMILIES, *front.FAMILIES)


def row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"


def test_the_page_lists_what_is_exported_and_nothing_else() -> None:
    listed = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert listed == [row(family) for family in ALL]


def test_the_page_names_every_outcome_and_the_bound_on_tenants() -> None:
    assert all(f"`{outcome}`" in PAGE for outcome in OUTCOMES)
    assert f"the first {MOST_TENANTS} that ask" in PAGE


@pytest.mark.parametrize("family", ALL, ids=lambda family: str(family.name))
def test_names_are_as_prometheus_wants_them(family: Family) -> None:
    assert (family.kind == "counter") == family.name.endswith("_total")
    assert (family.kind == "histogram") == bool(family.buckets)
    assert list(family.buckets) == sorted(set(family.buckets))
    assert "|" not in family.help and "\n" not in family.help


def test_names_are_there_once() -> None:
    assert len({family.name for family in ALL}) == len(ALL)
