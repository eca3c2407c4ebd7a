"""Dashboards are what Grafana takes, and each panel says what it shows and in which unit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dgemma.front.metrics import FAMILIES as FRONT
from dgemma.metrics.families import FAMILIES
from tests.helm.promtool import ALERTS, DASHBOARDS, panels, rules, targets

# No GPU without memory of its own reports these.
FRAME_BUFFER = re.compile(r"DCGM_FI_DEV_FB|nv_gpu_memory|fb_(used|free)")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")
_METRIC = re.compile(r"\b([a-z][a-z0-9_]+)\{")
KNOWN = {family.name for family in (*FAMILIES, *FRONT)}


def names(expression: str) -> set[str]:
    return {_SUFFIX.sub("", name) for name in _METRIC.findall(expression)}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported(dashboard: Path) -> None:
    content = json.loads(dashboard.read_text())
    assert content["uid"] == f"dgemma-{dashboard.stem}" and len(content["uid"]) <= 40
    variables = [variable["name"] for variable in content["templating"]["list"]]
    assert variables[:4] == ["datasource", "namespace", "job", "pod"]
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in content["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for one, other in ((a, b) for i, a in enumerate(places) for b in places[:i]):
        apart = (
            one["x"] >= other["x"] + other["w"]
            or other["x"] >= one["x"] + one["w"]
            or one["y"] >= other["y"] + other["h"]
            or other["y"] >= one["y"] + one["h"]
        )
        assert apart, (one, other)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_has_a_title_a_meaning_a_unit_and_the_chosen_source(dashboard: Path) -> None:
    for panel in panels(dashboard):
        title = panel["title"]
        assert title and panel["description"], title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["datasource"]["uid"] == "${datasource}", title
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", title
            assert 'namespace=~"$namespace",job=~"$job"' in target["expr"], title
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_nothing_is_shown_that_the_service_does_not_have(dashboard: Path) -> None:
    for expression in targets(dashboard):
        assert names(expression) and names(expression) <= KNOWN, expression
        assert not FRAME_BUFFER.search(expression)


def test_alerts_look_at_what_the_service_has() -> None:
    known = "|".join(KNOWN)
    for rule in rules(ALERTS):
        found = re.findall(rf"\b(?:{known})(?:_bucket|_sum|_count)?\b", rule["expr"])
        words = re.findall(r"\b(?:dgemma|num|time|request)_[a-z_]+\b", rule["expr"])
        assert found and set(words) == set(found), rule["alert"]


def test_there_is_one_for_the_service_its_tenants_and_its_canvases() -> None:
    assert [path.stem for path in DASHBOARDS] == ["canvas", "service", "tenants"]
