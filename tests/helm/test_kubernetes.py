"""Every object against the schemas of Kubernetes, and of the definitions that it does not have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.helm.releases import everything_of, one, release
from tests.helm.sdk import Object
from tests.helm.variants import VARIANTS

VERSIONS = ("1.31", "1.34", "1.37")
DEFINED_ELSEWHERE = ("gateway.networking.k8s.io", "monitoring.coreos.com")
MODELS = Path(
    os.environ.get("KUBERNETES_MODELS") or Path(sys.prefix) / "npm" / "node_modules"
)  # of npm's packages @kubernetes-models/gateway-api and prometheus-operator
CHECKER = Path(__file__).with_name("crds.mjs")


def is_defined_elsewhere(found: Object) -> bool:
    return found["apiVersion"].split("/")[0] in DEFINED_ELSEWHERE


def distinct(elsewhere: bool) -> Iterator[tuple[str, Object]]:
    """The objects of all variants, each once, and the first variant that has it."""
    seen = set()
    for variant in VARIANTS:
        for found in everything_of(release(variant)):
            text = json.dumps(found, sort_keys=True)
            if is_defined_elsewhere(found) == elsewhere and text not in seen:
                seen.add(text)
                yield variant, found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    count = 0
    for variant, found in distinct(elsewhere=False):
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = f"{variant}: {found['kind']} {found['metadata']['name']}"
            pytest.fail(f"{where}: {'.'.join(map(str, error.path))}: {error.message}")
        count += 1
    assert count > 50


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("path", "value"),
    [(("spec", "replicas"), "three"), (("spec", "template", "spec", "containres"), [])],
)
def test_a_mistake_would_be_seen(version: str, path: tuple[str, ...], value: Any) -> None:
    broken = json.loads(json.dumps(one(release("h100 single-tenant"), "Deployment")))
    place = broken
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def check(objects: list[Object]) -> list[str]:
    """What the definitions' own validators say against each; empty where nothing."""
    done = subprocess.run(
        ["node", str(CHECKER), str(MODELS)],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_what_others_define_is_valid_too() -> None:
    if shutil.which("node") is None or not (MODELS / "@kubernetes-models").is_dir():
        pytest.skip(f"no node, or no @kubernetes-models in {MODELS}: see .ci/run")
    found = [each for _, each in distinct(elsewhere=True)]
    assert {each["kind"] for each in found} == {
        "HTTPRoute",
        "GRPCRoute",
        "ServiceMonitor",
        "PrometheusRule",
    }
    assert check(found) == [""] * len(found)
    broken = [dict(each, spec={"parentRefs": 1, "endpoints": 1, "groups": 1}) for each in found]
    assert all(check(broken)), "a mistake would not be seen"
