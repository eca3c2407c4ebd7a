"""What the kubelet, routes and Prometheus ask for is what the front answers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import pytest
from fastapi.routing import APIRoute

from dgemma.front.app import create_app
from dgemma.front.settings import FrontSettings
from tests.helm.releases import (
    of_kind,
    one,
    release,
)
from tests.helm.sdk import Object
from tests.helm.variants import VARIANTS

every_variant = pytest.mark.parametrize("variant", VARIANTS)


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
