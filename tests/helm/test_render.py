"""The chart as files: what is linted, read by people, and taken with two `-f`."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from dgemma.tenants.schema import TenantsFile
from tests.helm.releases import everything_of, file, of_kind, one, release, values_of
from tests.helm.sdk import CHART, NAMESPACE, RELEASE, lint, render
from tests.helm.variants import EVERYTHING, PAIRS, PLATFORMS, VARIANTS

TARGETS = {"h100": "sm90", "h100-mig": "sm90", "dgx-spark": "sm121", "dgx-station": "sm103"}
STATED = ("disk", "memory", "GPU memory", "first token", "precision")


@pytest.mark.parametrize("pair", PAIRS)
def test_a_strict_lint_finds_nothing(pair: str) -> None:
    assert lint(values_of(pair)) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_renders_objects_that_can_be_told_apart(variant: str) -> None:
    found = everything_of(release(variant))
    names = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for _, _, name in names)
    for each in found:
        assert each["metadata"].get("namespace") in (None, NAMESPACE)


def test_every_template_has_one_object() -> None:
    for template in (CHART / "templates").rglob("*.yaml"):
        text = template.read_text()
        kinds = len(re.findall(r"^kind:", text, re.MULTILINE))
        included = len(re.findall(r'include "dgemma.test"', text))
        expected = 0 if template.name == "extra-objects.yaml" else 1
        assert kinds + included == expected, template


def test_every_template_renders_in_some_variant() -> None:
    kinds = {each["kind"] for v in VARIANTS for each in everything_of(release(v))}
    written = set()
    for template in (CHART / "templates").rglob("*.yaml"):
        written |= set(re.findall(r"^kind: (\w+)", template.read_text(), re.MULTILINE))
    assert written <= kinds


def test_the_values_fit_in_the_head() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) < 200


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platform_states_what_it_needs(platform: str) -> None:
    text = (CHART / "platforms" / f"{platform}.yaml").read_text()
    head = text.split("\nplatform:")[0]
    for what in STATED:
        assert re.search(rf"^#   {what}  +\S", head, re.MULTILINE), what
    assert ("not measured" in head) == (platform != "cpu-demo")
    values = file(f"platforms/{platform}")
    assert values["platform"]["name"] == platform
    stated = re.search(r"^#   precision +(\w+)", head, re.MULTILINE)
    assert stated is not None
    assert values["model"]["precision"] == stated[1]


@pytest.mark.parametrize("platform", TARGETS)
def test_a_platform_s_limits_are_those_of_its_target(platform: str) -> None:
    """Two rows a slot: one that commits a canvas, one that begins the next."""
    path = Path(str(files("dgemma.targets"))) / f"{TARGETS[platform]}.toml"
    target = tomllib.loads(path.read_text())
    given = file(f"platforms/{platform}")
    assert set(given["platform"]["precisions"]) <= set(target["precisions"])
    assert given["platform"]["limits"]["slots"] == target["max_rows"] // 2
    assert given["platform"]["limits"]["context"] == target["max_context"]
    unified = given["platform"].get("unifiedMemory")
    [gpu, *_] = target["gpus"]
    assert bool(unified) == gpu.get("unified", False)
    if unified:
        assert unified["totalGiB"] == gpu["memory_bytes"] // 2**30
        assert unified["headRoomGiB"] * 2**30 >= gpu["head_room_bytes"]


def test_platforms_are_those_that_there_are_files_of() -> None:
    assert {each.stem for each in (CHART / "platforms").iterdir()} == set(PLATFORMS)


def test_an_address_is_in_the_notes() -> None:
    notes = release("h100 single-tenant").notes
    assert f"http://{RELEASE}-dgemma.{NAMESPACE}.svc:8000" in notes
    assert f"helm -n {NAMESPACE} test {RELEASE} --logs" in notes


def test_what_quotas_of_each_pod_add_up_to_is_in_the_notes() -> None:
    notes = release("everything").notes
    assert "With 3 pods, if clients reach all of them, a tenant gets at most:" in notes
    assert "  acme: max_running 12, max_queued 0, tokens_per_minute 3000000\n" in notes
    assert "  guests: max_running without limit" in notes
    assert "Together they can have 24 requests running." in notes


def test_quotas_of_an_existing_secret_are_to_be_divided_by_the_most_pods() -> None:
    assert "divide what you mean by 8." in release("autoscaled").notes


def test_the_notes_say_when_it_is_suspended() -> None:
    assert "It is suspended: no pod runs." in release("suspended").notes
    assert "It is suspended" not in release("h100 single-tenant").notes


def test_the_tenants_are_what_the_service_reads() -> None:
    secret = one(release("everything"), "Secret", "tenants")
    read = TenantsFile.model_validate(yaml.safe_load(secret["stringData"]["tenants.yaml"]))
    assert [tenant.name for tenant in read.tenants] == ["acme", "guests"]
    assert read.tenants[0].limits.tokens_per_minute == 1_000_000
    assert read.tenants[0].weight == 2.5


def test_files_of_rules_and_dashboards_are_taken_as_they_are() -> None:
    rules = one(release("everything"), "PrometheusRule")["spec"]["groups"]
    written = []
    for name in ("autoscaling", "alerts"):
        path = CHART / "files" / f"{name}.yaml"
        if path.is_file():
            written += yaml.safe_load(path.read_text())["groups"]
    assert rules == written
    [dashboards] = of_kind(release("everything"), "ConfigMap", "dashboards")
    for path in (CHART / "files" / "dashboards").glob("*.json"):
        assert json.loads(dashboards["data"][path.name]) == json.loads(path.read_text())


def test_names_fit_whatever_the_release_is_called() -> None:
    long = render(values_of("h100 multi-tenant", {**EVERYTHING, "nameOverride": "a" * 40}))
    for found in everything_of(long):
        assert len(found["metadata"]["name"]) <= 63
