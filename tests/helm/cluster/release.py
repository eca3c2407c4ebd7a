"""A rendered release in the hands of this machine's cluster.

Knows how objects of a release find each other; knows nothing of what runs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helm.cluster.machine import Mounted, Objects, environment
from tests.helm.releases import everything_of, of_kind, one, values_of
from tests.helm.sdk import NAMESPACE, Rendered, render


@dataclass(frozen=True)
class Release:
    """What `helm install` creates, and what `helm test` does."""

    rendered: Rendered

    @classmethod
    def of(cls, pair: str, values: Mapping[str, Any]) -> Release:
        """Of `PLATFORM TENANCY`."""
        return cls(render(values_of(pair, values)))

    @property
    def deployment(self) -> Mapping[str, Any]:
        return one(self.rendered, "Deployment", "server")

    @property
    def test_pods(self) -> list[Mapping[str, Any]]:
        found = [pod for pod in everything_of(self.rendered) if pod["kind"] == "Pod"]
        hooks = [pod for pod in found if "test" in pod["metadata"]["annotations"]["helm.sh/hook"]]
        return sorted(hooks, key=_order)

    def objects(
        self, service_address: str, secrets: Mapping[str, Mapping[str, str]] | None = None
    ) -> Objects:
        """What its pods refer to; `secrets` are those that exist beside it."""
        maps = {m["metadata"]["name"]: m["data"] for m in of_kind(self.rendered, "ConfigMap")}
        own = {
            s["metadata"]["name"]: s.get("stringData", {}) for s in of_kind(self.rendered, "Secret")
        }
        names = [service["metadata"]["name"] for service in of_kind(self.rendered, "Service")]
        hosts = {f"{name}.{NAMESPACE}.svc": service_address for name in names}
        return Objects(maps, own | dict(secrets or {}), hosts, {})


def _order(hook: Mapping[str, Any]) -> tuple[int, str]:
    """That of Helm."""
    weight = hook["metadata"]["annotations"].get("helm.sh/hook-weight", "0")
    return int(weight), hook["metadata"]["name"]


def run_test(pod: Mapping[str, Any], root: Path, objects: Objects) -> tuple[int, str]:
    """A pod of `helm test` to its end: exit code and output."""
    [container] = pod["spec"]["containers"]
    root = root / pod["metadata"]["name"]
    mounted = Mounted.of(pod["spec"], container, root, objects)
    done = subprocess.run(
        [mounted.here(word) for word in container["command"]],
        env=environment(container, mounted, objects, {}),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=pod["spec"]["activeDeadlineSeconds"],
    )
    return done.returncode, done.stdout + done.stderr
