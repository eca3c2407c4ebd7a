"""Pods fit where they are sent, and neither a rollout nor a drain waits for ever."""

from __future__ import annotations

import pytest

from tests.helm.releases import (
    all_values,
    component_of,
    containers,
    of_kind,
    one,
    pods,
    release,
)
from tests.helm.sdk import CHART
from tests.helm.variants import VARIANTS

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
def test_gpus_are_requested_as_they_are_limited_and_only_where_needed(variant: str) -> None:
    platform = all_values(variant)["platform"]
    for name, pod in pods(release(variant)):
        for container in containers(pod):
            requests, limits = (container["resources"].get(x, {}) for x in ("requests", "limits"))
            gpus = {key: limits[key] for key in limits if "/" in key}
            assert gpus == {key: requests[key] for key in requests if "/" in key}
            wanted = {platform["gpuResource"]: platform["gpuCount"]} if platform["gpuCount"] else {}
            assert gpus == ({} if component_of(pod) == "test" else wanted), name
            assert "memory" in limits, name


@every_variant
def test_a_pod_with_a_gpu_goes_to_a_product_of_the_list_and_every_pod_to_its_architecture(
    variant: str,
) -> None:
    platform = all_values(variant)["platform"]
    for name, pod in pods(release(variant)):
        affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
        terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
        expressions = terms.get("nodeSelectorTerms", [{"matchExpressions": []}])
        [only] = expressions
        by_key = {e["key"]: (e["operator"], e["values"]) for e in only["matchExpressions"]}
        expected = {}
        if platform["arch"]:
            expected["kubernetes.io/arch"] = ("In", [platform["arch"]])
        if platform["gpuCount"] and component_of(pod) != "test":
            expected["nvidia.com/gpu.product"] = ("In", platform["products"])
        assert by_key == expected, name


@every_variant
def test_no_rollout_waits_for_a_pod_that_cannot_fit(variant: str) -> None:
    values = all_values(variant)
    for deployment in of_kind(release(variant), "Deployment"):
        strategy = deployment["spec"]["strategy"]
        if strategy["type"] == "Recreate":
            assert "rollingUpdate" not in strategy
            continue
        rolling = strategy["rollingUpdate"]
        assert rolling["maxSurge"] + rolling["maxUnavailable"] == 1
        if values["rollout"] != "surge":
            assert rolling["maxSurge"] == 0
        shared = values["store"]["mode"] in ("hostPath", "emptyDir", "existingClaim")
        assert shared or values["store"]["accessMode"] == "ReadWriteMany"


@every_variant
def test_a_job_for_the_engine_never_waits_for_the_gpu_of_a_pod_that_waits_for_it(
    variant: str,
) -> None:
    rendered, values = release(variant), all_values(variant)
    deployment = one(rendered, "Deployment", "server")
    for job in of_kind(rendered, "Job"):
        assert "helm.sh/hook" not in (job["metadata"].get("annotations") or {})
        surge = deployment["spec"]["strategy"].get("rollingUpdate", {}).get("maxSurge", 0)
        assert deployment["spec"].get("replicas") == 0 or surge > 0
    init = deployment["spec"]["template"]["spec"].get("initContainers", [])
    assert [c["name"] for c in init] == ([] if values["engine"]["build"] == "none" else ["engine"])


@every_variant
def test_neither_budget_nor_autoscaler_blocks_the_drain_of_a_node(variant: str) -> None:
    rendered = release(variant)
    for budget in of_kind(rendered, "PodDisruptionBudget"):
        assert "minAvailable" not in budget["spec"]
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for scaler in of_kind(rendered, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["minReplicas"] >= 1


@every_variant
def test_who_scales_is_the_autoscaler_or_a_number_and_never_both(variant: str) -> None:
    rendered, values = release(variant), all_values(variant)
    scalers = of_kind(rendered, "HorizontalPodAutoscaler")
    spec = one(rendered, "Deployment", "server")["spec"]
    assert bool(scalers) == (values["autoscaling"]["enabled"] and not values["suspended"])
    assert ("replicas" in spec) == (not scalers)
    if values["suspended"]:
        assert spec["replicas"] == 0


def test_the_autoscaler_asks_for_a_metric_that_is_recorded() -> None:
    [metric] = one(release("autoscaled"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"record: {name}\n" in (CHART / "files" / "autoscaling.yaml").read_text()
