"""What has to hold between objects: names that are referred to, probes, GPUs, drains, security."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import pytest
import yaml
from fastapi.routing import APIRoute

from dgemma.front.app import create_app
from dgemma.front.settings import FrontSettings
from tests.helm.releases import (
    VARIANTS,
    component_of,
    containers,
    everything_of,
    merged,
    of_kind,
    one,
    pods,
    release,
    values_of,
)
from tests.helm.sdk import CHART, Object

RESERVED = {"store", "tmp", "shm", "models", "tenants", "ledger", "tls"}  # as the chart's rule says
OTHERS = {"extra", "tests", "authorities", "client", "cache"}  # of pods without extraVolumes
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@cache
def resolved(variant: str) -> dict[str, Any]:
    """All values of a variant, the chart's defaults included."""
    pair, more = VARIANTS[variant]
    return merged(yaml.safe_load((CHART / "values.yaml").read_text()), values_of(pair, more))


def labels_of(found: Object) -> dict[str, str]:
    return found["metadata"].get("labels") or {}


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


# Selectors


@every_variant
def test_selectors_match_the_pods_they_mean_and_no_others(variant: str) -> None:
    rendered = release(variant)
    by_component = {component_of(pod): labels_of(pod) for _, pod in pods(rendered)}
    for kind, path in {
        "Deployment": ("spec", "selector", "matchLabels"),
        "Service": ("spec", "selector"),
        "PodDisruptionBudget": ("spec", "selector", "matchLabels"),
        "NetworkPolicy": ("spec", "podSelector", "matchLabels"),
    }.items():
        for found in of_kind(rendered, kind):
            selector: Any = found
            for name in path:
                selector = selector[name]
            selected = [name for name, have in by_component.items() if selects(selector, have)]
            assert selected == [str(component_of(found)).removesuffix("-headless")], kind


@every_variant
def test_the_monitor_finds_one_service_with_the_port_it_names(variant: str) -> None:
    rendered = release(variant)
    for monitor in of_kind(rendered, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        [service] = [s for s in of_kind(rendered, "Service") if selects(wanted, labels_of(s))]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


@every_variant
def test_services_routes_and_the_autoscaler_lead_to_what_is_there(variant: str) -> None:
    rendered = release(variant)
    services = {s["metadata"]["name"]: s for s in of_kind(rendered, "Service")}
    for service in services.values():
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        name = str(component_of(service)).removesuffix("-headless")
        [pod] = [pod for _, pod in pods(rendered) if component_of(pod) == name]
        assert targets <= {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    for kind in ("HTTPRoute", "GRPCRoute"):
        for route in of_kind(rendered, kind):
            for backend in route["spec"]["rules"][0]["backendRefs"]:
                ports = {p["port"] for p in services[backend["name"]]["spec"]["ports"]}
                assert backend["port"] in ports
    for ingress in of_kind(rendered, "Ingress"):
        [path] = ingress["spec"]["rules"][0]["http"]["paths"]
        backend = path["backend"]["service"]
        ports = {p["name"] for p in services[backend["name"]]["spec"]["ports"]}
        assert backend["port"]["name"] in ports
    deployments = {d["metadata"]["name"] for d in of_kind(rendered, "Deployment")}
    for scaler in of_kind(rendered, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments


# References


def references(pod: Object) -> Iterator[tuple[str, str]]:
    """Kind and name of whatever a pod needs."""
    for each in pod["spec"].get("imagePullSecrets", []):
        yield "Secret", each["name"]
    for volume in pod["spec"].get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in containers(pod):
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield "Secret", variable["valueFrom"]["secretKeyRef"]["name"]
    if "priorityClassName" in pod["spec"]:
        yield "PriorityClass", pod["spec"]["priorityClassName"]


def declared_external(values: dict[str, Any]) -> set[tuple[str, str]]:
    """What the values say is there already."""
    model, tls, tenancy = values["model"], values["tls"], values["tenancy"]
    secrets = [
        *values["image"]["pullSecrets"],
        *(model["hfToken"]["secret"], values["tests"]["apiKey"]["secret"]),
        *(tls["secret"], tls["clientSecret"], tenancy["existingSecret"]),
    ]
    claims = [
        *(values["store"]["claim"], tenancy["ledgerClaim"], values["baseline"]["cacheClaim"]),
        model["volume"].get("persistentVolumeClaim", {}).get("claimName", ""),
    ]
    classes = [values["scheduling"]["priorityClass"]["name"]]
    return {
        *(("Secret", name) for name in secrets if name),
        *(("PersistentVolumeClaim", name) for name in claims if name),
        *(("PriorityClass", name) for name in classes if name),
    }


@every_variant
def test_whatever_a_pod_refers_to_is_made_here_or_declared_to_exist(variant: str) -> None:
    rendered = release(variant)
    made = {(each["kind"], each["metadata"]["name"]) for each in everything_of(rendered)}
    for name, pod in pods(rendered):
        assert set(references(pod)) <= made | declared_external(resolved(variant)), name


@every_variant
def test_mounts_are_of_volumes_that_are_used(variant: str) -> None:
    for name, pod in pods(release(variant)):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        mounted = {m["name"] for c in containers(pod) for m in c.get("volumeMounts", [])}
        assert mounted <= volumes, name
        assert volumes - {"extra"} <= mounted, name
        assert volumes & RESERVED == volumes - OTHERS, "a name that extraVolumes may take"
        for container in containers(pod):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(paths) == len(set(paths)), name


@every_variant
def test_tenants_are_a_directory_that_is_updated_and_no_reason_to_start_anew(variant: str) -> None:
    pod = one(release(variant), "Deployment", "server")["spec"]["template"]
    mounts = {m["name"]: m for m in pod["spec"]["containers"][0]["volumeMounts"]}
    multi = resolved(variant)["tenancy"]["mode"] == "multi"
    assert ("tenants" in mounts) == multi
    assert all("subPath" not in mount for mount in mounts.values())
    annotations = pod["metadata"].get("annotations") or {}
    assert not [name for name in annotations if "checksum" in name]


@every_variant
def test_the_hub_s_token_is_for_the_engine_s_builder_and_the_baseline_alone(variant: str) -> None:
    for _, pod in pods(release(variant)):
        for container in containers(pod):
            names = {variable["name"] for variable in container.get("env", [])}
            if "HF_TOKEN" in names:
                assert container["name"] == "engine" or component_of(pod) == "baseline"


# Probes


@cache
def endpoints() -> set[str]:
    doorway: Any = create_app(FrontSettings.load(), cast(Any, None))
    return {route.path for route in doorway._app.routes if isinstance(route, APIRoute)}


def probes(pod: Object) -> Iterator[tuple[str, Object, set[str]]]:
    for container in pod["spec"]["containers"]:
        ports = {port["name"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in container:
                yield kind, container[kind], ports


@every_variant
def test_probes_name_ports_and_endpoints_that_are_there(variant: str) -> None:
    pod = one(release(variant), "Deployment", "server")["spec"]["template"]
    found = list(probes(pod))
    assert len(found) == 3
    for _, probe, ports in found:
        assert (probe.get("httpGet") or probe["tcpSocket"])["port"] in ports
        if "httpGet" in probe:
            assert probe["httpGet"]["path"] in endpoints()
            assert (probe["httpGet"]["scheme"] == "HTTPS") == (variant == "tls")
        assert probe["periodSeconds"] > 0


@every_variant
def test_what_lives_is_not_what_is_ready(variant: str) -> None:
    pod = one(release(variant), "Deployment", "server")["spec"]["template"]
    by_kind = {kind: probe for kind, probe, _ in probes(pod)}
    asked = {kind: probe.get("httpGet") or probe["tcpSocket"] for kind, probe in by_kind.items()}
    assert asked["livenessProbe"] != asked["readinessProbe"] == asked["startupProbe"]


@every_variant
def test_routes_and_the_monitor_ask_for_endpoints_that_are_there(variant: str) -> None:
    for monitor in of_kind(release(variant), "ServiceMonitor"):
        assert {each["path"] for each in monitor["spec"]["endpoints"]} <= endpoints()
    for route in of_kind(release(variant), "HTTPRoute"):
        for match in route["spec"]["rules"][0]["matches"]:
            value = match["path"]["value"]
            assert [path for path in endpoints() if path.startswith(value)]


# GPUs and nodes


@every_variant
def test_gpus_are_requested_as_they_are_limited_and_only_where_needed(variant: str) -> None:
    platform = resolved(variant)["platform"]
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
    platform = resolved(variant)["platform"]
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


# Rollouts and drains


@every_variant
def test_no_rollout_waits_for_a_pod_that_cannot_fit(variant: str) -> None:
    values = resolved(variant)
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
    rendered, values = release(variant), resolved(variant)
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
    rendered, values = release(variant), resolved(variant)
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


# Security


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
