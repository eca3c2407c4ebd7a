"""Install, upgrade and rollback by Helm itself, on an API that refuses what the real one does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from tests.helm.api import Api, refusal, serving
from tests.helm.releases import merged, release, values_of
from tests.helm.sdk import CHART, NAMESPACE, RELEASE, Object, chart
from tests.helm.variants import EVERYTHING, PAIRS, REVISION, VARIANTS

helm_python = pytest.importorskip("helm_python")
# Value sets that one release may go between: those of the same kind of machine and the same store.
FAMILIES = {
    "h100": ("h100 single-tenant", "h100 multi-tenant", "pinned", "tls"),
    "MIG": ("h100-mig single-tenant", "h100-mig multi-tenant", "h100 single-tenant"),
    "spark": ("dgx-spark single-tenant", "dgx-spark multi-tenant", "suspended", "job beforehand"),
    "station": ("dgx-station single-tenant", "dgx-station multi-tenant", "trtllm baseline"),
    "demo": ("cpu-demo single-tenant", "cpu-demo multi-tenant"),
    "shared store": ("everything", "autoscaled", "suspended, autoscaled"),
}
STEPS = [(a, b) for family in FAMILIES.values() for a, b in permutations(family, 2)]


class Cluster:
    """A release's life on one API."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._config = helm_python.Config(
            storage_driver="memory", namespace=NAMESPACE, kube_apiserver=api.url
        )

    def install(self, values: dict[str, Any]) -> Object:
        found: Object = self._config.install(chart(CHART), RELEASE, values)
        return found

    def upgrade(self, values: dict[str, Any]) -> Object:
        found: Object = self._config.upgrade(chart(CHART), RELEASE, values, reset_values=True)
        return found

    def rollback(self) -> None:
        self._config.rollback(RELEASE)

    def history(self) -> list[tuple[int, str]]:
        return [(each["revision"], each["status"]) for each in self._config.history(RELEASE)]

    def close(self) -> None:
        self._config.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serving() as api:
        found = Cluster(api)
        yield found
        found.close()


def values(variant: str) -> dict[str, Any]:
    return values_of(*VARIANTS[variant])


def objects(variant: str) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in release(variant).objects}


KEPT = {("PersistentVolumeClaim", f"{RELEASE}-dgemma-store")}


def test_install_upgrade_and_rollback(cluster: Cluster) -> None:
    one, other = "h100 single-tenant", "h100 multi-tenant"
    assert cluster.install(values(one))["status"] == "deployed"
    assert cluster.api.names() == objects(one)
    before = dict(cluster.api.objects)
    more = {"tenancy": {"existingSecret": "", "tenants": EVERYTHING["tenancy"]["tenants"]}}
    changed = merged(values(other), more, {"model": {"revision": REVISION}})
    assert cluster.upgrade(changed)["revision"] == 2
    assert ("Secret", f"{RELEASE}-dgemma-tenants") in cluster.api.names()
    assert cluster.api.objects != before
    cluster.rollback()
    assert cluster.api.objects == before
    assert cluster.history() == [(1, "superseded"), (2, "superseded"), (3, "deployed")]


def test_everything_can_be_switched_off_again(cluster: Cluster) -> None:
    one, other = "everything", "autoscaled"
    cluster.install(values(one))
    assert cluster.api.names() == objects(one)
    cluster.upgrade(values(other))
    assert cluster.api.names() == objects(other) | KEPT
    cluster.rollback()
    assert cluster.api.names() == objects(one)


def test_the_store_outlives_another_choice_of_store(cluster: Cluster) -> None:
    cluster.install(values("h100 single-tenant"))
    cluster.upgrade(values("host path"))
    assert cluster.api.names() == objects("host path") | KEPT


def test_another_engine_is_another_job(cluster: Cluster) -> None:
    def jobs() -> set[tuple[str, str]]:
        return {(kind, name) for kind, name in cluster.api.names() if kind == "Job"}

    cluster.install(values("job beforehand"))
    before = jobs()
    cluster.upgrade(merged(values("job beforehand"), {"serving": {"logLevel": "info"}}))
    assert jobs() == before, "nothing that concerns it has changed"
    cluster.upgrade(merged(values("job beforehand"), {"model": {"precision": "fp8"}}))
    assert len(jobs()) == 1
    assert jobs() != before


def test_what_cannot_be_changed_is_refused_here_as_by_the_real_api(cluster: Cluster) -> None:
    cluster.install(values("h100 single-tenant"))
    with pytest.raises(helm_python.HelmError, match=r"storage: field can not be less than"):
        cluster.upgrade(merged(values("h100 single-tenant"), {"store": {"size": "10Gi"}}))
    with pytest.raises(helm_python.HelmError, match=r"spec\.accessModes: field is immutable"):
        cluster.upgrade(
            merged(values("h100 single-tenant"), {"store": {"accessMode": "ReadWriteMany"}})
        )


@pytest.mark.parametrize(("one", "other"), STEPS, ids=lambda step: step)
def test_no_upgrade_within_a_family_changes_what_is_immutable(one: str, other: str) -> None:
    before = {(o["kind"], o["metadata"]["name"]): o for o in release(one).objects}
    for found in release(other).objects:
        old = before.get((found["kind"], found["metadata"]["name"]))
        assert old is None or refusal(old, found) is None


def test_families_have_every_platform_and_tenancy() -> None:
    named = {variant for family in FAMILIES.values() for variant in family}
    assert {VARIANTS[variant][0] for variant in named} >= set(PAIRS)
