"""Objects of a release refer to each other, and to what was declared to exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.releases import (
    all_values,
    component_of,
    containers,
    everything_of,
    labels_of,
    of_kind,
    one,
    pods,
    release,
    selects,
)
from tests.helm.sdk import Object
from tests.helm.variants import VARIANTS

RESERVED = {"store", "tmp", "shm", "models", "tenants", "ledger", "tls"}  # as the chart's rule says
OTHERS = {"extra", "tests", "authorities", "client", "cache"}  # of pods without extraVolumes
every_variant = pytest.mark.parametrize("variant", VARIANTS)


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
        assert set(references(pod)) <= made | declared_external(all_values(variant)), name


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
    multi = all_values(variant)["tenancy"]["mode"] == "multi"
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
