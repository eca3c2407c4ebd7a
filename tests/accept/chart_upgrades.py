"""Upgrades under load: what clients lose while one version takes the place of another.

Knows which clients there are and what each of them is promised; the cluster is processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgemma_build.engine import build_engine
from tests.accept.main_job import Line
from tests.helm.cluster.deployment import Deployment
from tests.helm.cluster.load import (
    Kind,
    Load,
    grpc_kept,
    grpc_once,
    http_once,
    http_with_retries,
)
from tests.helm.cluster.release import Release
from tests.helm.cluster.service import Service

PAIR = "cpu-demo single-tenant"


@dataclass(frozen=True)
class Upgraded:
    """Clients' outcomes, and how long the change took."""

    kinds: tuple[Kind, ...]
    took_s: float


def rolling(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Two replicas, a further one for the change: nobody loses a request."""
    for number in range(1, rounds + 1):
        change = {"replicas": 2, "rollout": "surge"}
        kinds = (http_once, grpc_once, http_with_retries, grpc_kept)
        done = _upgrade(checkpoint, change, kinds)
        yield Line(f"two replicas, upgrade {number}", f"{done.took_s:.0f} s", "")
        for kind in done.kinds:
            yield Line(f"  {kind.name}", kind.summary(), "0 lost", not kind.errors)


def recreate(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """One replica that goes before the next one comes: retries lose no request."""
    for number in range(1, rounds + 1):
        kinds = (http_with_retries, grpc_kept, _grpc_without_retries)
        done = _upgrade(checkpoint, {"rollout": "recreate"}, kinds)
        yield Line(f"one replica, recreated {number}", f"{done.took_s:.0f} s", "")
        for kind in done.kinds:
            if kind.name.endswith("retries"):
                yield Line(f"  {kind.name}", kind.summary(), "0 lost", not kind.errors)
                continue
            only = all(o.error == "UNAVAILABLE" and o.hinted for o in kind.errors)
            promised = "UNAVAILABLE alone, with a hint"
            yield Line(f"  {kind.name}", kind.summary(), promised, only and bool(kind.errors))


def _grpc_without_retries(address: str) -> Kind:
    return grpc_kept(address, retry_for_s=0.0)


def _upgrade(
    checkpoint: Path, change: Mapping[str, Any], kinds: tuple[Callable[[str], Kind], ...]
) -> Upgraded:
    with _cluster(checkpoint, change) as (deployment, service, newer):
        clients = tuple(kind(service.address) for kind in kinds)
        with Load(clients) as load:
            load.wait_answered(0.0)
            began = time.monotonic()
            deployment.roll(newer)
            ended = time.monotonic()
            load.wait_answered(ended)
    return Upgraded(clients, ended - began)


@contextmanager
def _cluster(
    checkpoint: Path, change: Mapping[str, Any]
) -> Iterator[tuple[Deployment, Service, Mapping[str, Any]]]:
    """Pods that are ready, their Service, and the manifest of the next version."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        build_engine(checkpoint, "cpu", "fp32", root / "store" / "engines" / "demo")
        # Upgrades are about the service, so that the engine is there already.
        store = {"mode": "hostPath", "path": str(root / "store")}
        values = {"engine": {"build": "none"}, "store": store, **change}
        before = Release.of(PAIR, values)
        after = Release.of(PAIR, values | {"podAnnotations": {"version": "2"}})
        pods: list[Deployment] = []
        with Service(lambda: pods[0].pods + pods[0].past if pods else []) as service:
            objects = before.objects(service.address)
            with Deployment(before.deployment, root / "pods", objects) as deployment:
                pods.append(deployment)
                deployment.wait_ready()
                yield deployment, service, after.deployment
