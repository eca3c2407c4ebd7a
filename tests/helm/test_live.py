"""The chart's `cpu-demo`, run: its container, probes, tests, metrics and end, on the real service.

The engine is there already and preStop is short; `make accept-5` runs the release as it stands.
"""

from __future__ import annotations

import math
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgemma.client import Client, Update
from tests.helm.cluster.load import http_once
from tests.helm.cluster.machine import Objects
from tests.helm.cluster.pod import Pod
from tests.helm.cluster.release import Release, run_test
from tests.helm.cluster.service import Service
from tests.helm.prometheus import Prometheus, Scraped, scraping
from tests.helm.promtool import ALERTS, AUTOSCALING, DASHBOARDS, rules, targets
from tests.helm.sdk import NAMESPACE

pytest.importorskip("helm_python", reason="neither helm nor its SDK is installed")


@dataclass(frozen=True)
class Running:
    release: Release
    pod: Pod
    service: Service
    objects: Objects


@pytest.fixture(scope="module")
def running(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("cluster")
    shutil.copytree(demo_engine, root / "store" / "engines" / "demo")
    release = Release.of(
        "cpu-demo single-tenant",
        {
            "engine": {"build": "none"},
            "store": {"mode": "hostPath", "path": str(root / "store")},
            "serving": {"preStopSeconds": 1},
            "rollout": "recreate",
        },
    )
    pods: list[Pod] = []
    with Service(lambda: pods) as service:
        objects = release.objects(service.address)
        pod = Pod("rel-1", release.deployment["spec"]["template"], root, objects)
        pods.append(pod)
        try:
            pod.start().wait_ready()
            yield Running(release, pod, service, objects)
        finally:
            pod.close()


def test_it_is_ready_and_was_never_restarted(running: Running) -> None:
    seen = running.pod.seen
    assert running.pod.serving and seen.exits == [] and seen.liveness_failures == 0
    assert "profile_selected" in running.pod.log


def test_every_helm_test_passes(running: Running, tmp_path: Path) -> None:
    names = []
    for pod in running.release.test_pods:
        code, said = run_test(pod, tmp_path, running.objects)
        assert code == 0, said
        names.append(pod["metadata"]["name"].rpartition("-")[2])
    assert sorted(names) == ["chat", "generation", "health", "metrics", "served"]


@pytest.fixture(scope="module")
def prometheus(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped the pod while the pod answered."""
    labels = {"namespace": NAMESPACE, "job": "rel-dgemma", "service": "rel-dgemma", "pod": "rel-1"}
    pod = Scraped(f"{running.pod.address}:8000", "/v1/metrics", labels)
    directory = tmp_path_factory.mktemp("prometheus")
    with scraping([pod], [ALERTS, AUTOSCALING], directory) as found:
        found.wait_for("dgemma_ready == 1")
        ask = http_once(running.service.address).ask
        for _ in range(3):
            ask()
        with Client(f"{running.service.address}:8001") as client:
            client.generate("a prompt of more than one canvas " * 8, max_new_tokens=8)
        found.wait_for("rate(dgemma_requests_total[1m]) > 0")
        found.wait_for("rate(dgemma_queue_wait_seconds_count[1m]) > 0")
        found.wait_for("rate(dgemma_prefix_cache_lookups_total[1m]) > 0")
        found.wait_for("rate(dgemma_http_requests_total[1m]) > 0")
        yield found


def test_every_expression_of_the_dashboards_has_data(prometheus: Prometheus) -> None:
    empty = []
    for dashboard in DASHBOARDS:
        for expression in targets(dashboard):
            asked = expression.replace("$__rate_interval", "1m")
            asked = re.sub(r"\$(namespace|job|pod|tenant)", ".*", asked)
            if not any(map(math.isfinite, prometheus.query(asked))):
                empty.append((dashboard.stem, expression))
    assert empty == []


def test_every_expression_of_alerts_and_autoscaler_has_data(prometheus: Prometheus) -> None:
    """Comparisons say yes or no instead of choosing, and labels are those of any service."""
    empty = []
    for rule in (*rules(ALERTS), *rules(AUTOSCALING)):
        for part in operands(rule["expr"]):
            if not any(map(math.isfinite, prometheus.query(part))):
                empty.append((rule.get("alert") or rule["record"], part))
    assert empty == []
    assert all(map(math.isfinite, prometheus.query("dgemma_queue_wait_p95_seconds")))


def operands(expression: str) -> list[str]:
    """What `unless` stands between, and `and`: each has to have data."""
    expression = re.sub(r"(?<=[^=!<>~])(==|>=?)(?=[ \n])", r"\1 bool", expression)
    for label in ("fell_back", "simulated", "verification", "outcome", "status"):
        expression = re.sub(rf'{label}!?=~?"[^"]*"', f'{label}!=""', expression)
    return [
        re.sub(r"^on \([a-z, ]*\)", "", part.strip())
        for part in re.split(r"\b(?:unless|and)\b(?! on time)", expression)
    ]


def test_the_rules_evaluate_and_nothing_that_is_wrong_is_seen(prometheus: Prometheus) -> None:
    loaded = prometheus.rules()
    assert len(loaded) == len(rules(ALERTS)) + len(rules(AUTOSCALING))
    assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}
    # A restart inside a minute of the start is none, nor is an engine without a report an outage.
    assert prometheus.query('ALERTS{alertstate="firing",severity="critical"}') == []


def test_deleted_it_finishes_what_runs_and_takes_nothing_new(running: Running) -> None:
    updates: list[Update] = []
    begun = threading.Event()

    def listen() -> None:
        with Client(f"{running.service.address}:8001") as client:
            stream = client.stream(
                messages=[{"role": "user", "content": "count from 1"}],
                stream="draft",
                max_new_tokens=512,
                ignore_eos=True,
            )
            for update in stream:
                updates.append(update)
                begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(30)
    running.pod.delete()
    assert running.pod.wait_gone() == 0
    listener.join(30)
    assert updates[-1].kind == "final" and updates[-1].finish_reason == "length"
    seen = running.pod.seen
    assert seen.pre_stop == 0 and not seen.killed
    with pytest.raises(OSError):
        http_once(running.service.address).ask()
