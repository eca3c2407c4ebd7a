"""A release of the chart, rendered, in the hands of this machine's cluster.

Knows how objects of a release are found; knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.helm.cluster.machine import Objects

NAMESPACE, NAME = "demo", "rel"


@dataclass(frozen=True)
class Release:
    """Every object of it, hooks included."""

    objects: tuple[Mapping[str, Any], ...]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [found for found in self.objects if found["kind"] == kind]

    @property
    def deployment(self) -> Mapping[str, Any]:
        [found] = self.of("Deployment")
        return found

    @property
    def test_pods(self) -> list[Mapping[str, Any]]:
        """Those of `helm test`."""
        return [
            pod
            for pod in self.of("Pod")
            if pod["metadata"]["annotations"].get("helm.sh/hook") == "test"
        ]

    def cluster(self, service_address: str = "", **others: Any) -> Objects:
        """What its pods refer to; its Service has that address."""
        maps = {m["metadata"]["name"]: m["data"] for m in self.of("ConfigMap")}
        secrets = {s["metadata"]["name"]: s.get("stringData", {}) for s in self.of("Secret")}
        names = [service["metadata"]["name"] for service in self.of("Service")]
        hosts = {f"{name}.{NAMESPACE}.svc": service_address for name in names}
        return replace(Objects(maps, secrets, hosts), **others)


def release(objects: Iterable[Mapping[str, Any]]) -> Release:
    return Release(tuple(objects))
