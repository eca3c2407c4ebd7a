"""Pods are restricted, images have versions, and nothing secret is written."""

from __future__ import annotations

import re

import pytest

from tests.helm.releases import (
    component_of,
    containers,
    labels_of,
    of_kind,
    one,
    pods,
    release,
    selects,
)
from tests.helm.variants import VARIANTS

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
def test_pods_are_restricted(variant: str) -> None:
    for name, pod in pods(release(variant)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert "serviceAccountName" not in spec
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        user = spec["securityContext"].get("runAsUser")
        assert user is None if variant == "OpenShift" else user == 1000
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@every_variant
def test_every_image_has_a_version(variant: str) -> None:
    for name, pod in pods(release(variant)):
        for container in containers(pod):
            image = container["image"]
            assert re.search(r":v?[0-9][\w.-]*$|@sha256:[0-9a-f]{64}$", image), f"{name}: {image}"


@every_variant
def test_no_secret_is_written_but_the_hashes_of_keys(variant: str) -> None:
    for secret in of_kind(release(variant), "Secret"):
        assert component_of(secret) == "tenants"


def test_a_policy_lets_in_who_was_named_and_our_own_tests() -> None:
    policy = one(release("everything"), "NetworkPolicy", "server")["spec"]
    asking, scraping = policy["ingress"]
    assert len(asking["from"]) == 2
    tests = [pod for _, pod in pods(release("everything")) if component_of(pod) == "test"]
    wanted = asking["from"][1]["podSelector"]["matchLabels"]
    assert len(tests) == 5
    assert all(selects(wanted, labels_of(pod)) for pod in tests)
    assert {port["port"] for port in scraping["ports"]} == {"http", "metrics"}
    assert policy["egress"], "the hub"
    assert one(release("air-gapped"), "NetworkPolicy")["spec"]["egress"] == []
