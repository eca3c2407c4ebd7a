"""What the chart refuses with words of its own: each rule, and what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.helm.releases import values_of
from tests.helm.sdk import CHART, Refused, render
from tests.helm.variants import MANY, REVISION, TENANTS

TEMPLATES = CHART / "templates"
H100, SPARK = "h100 single-tenant", "dgx-spark single-tenant"
MULTI = "h100 multi-tenant"
BROKEN: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "image": (
        H100,
        {"image": {"repository": ""}},
        "image.repository: not set. Build the image and push it to a registry that the cluster "
        "reaches, then name it:\n    docker buildx build --platform linux/amd64,linux/arm64 --push "
        "--tag REGISTRY/dgemma:0.1.0 .\n    helm … --set image.repository=REGISTRY/dgemma",
    ),
    "latest": (H100, {"image": {"tag": "latest"}}, "image.tag: latest is another image tomorrow"),
    "platform": (H100, {"platform": {"name": ""}}, "platform: not set. Name a file of what the"),
    "precision": (
        H100,
        {"model": {"precision": "nvfp4"}},
        "model.precision: nvfp4 is no precision of h100; choose one of bf16, fp8, int4",
    ),
    "slots": (
        SPARK,
        {"serving": {"slots": 9}},
        "serving.slots: 9 are more than engines of dgx-spark have rows for; at most 8",
    ),
    "context": (
        H100,
        {"serving": {"maxModelLen": 65536}},
        "serving.maxModelLen: 65536 tokens are more than engines of h100 take; at most 32768",
    ),
    "stuck": (
        H100,
        {"serving": {"quietSeconds": 5}},
        "serving.stuckSeconds: 4 is not above quietSeconds, 5",
    ),
    "gpu": (
        H100,
        {"platform": {"gpuCount": 0}},
        "platform.gpuResource, platform.gpuCount: set both, as nvidia.com/gpu and 1, or neither",
    ),
    "replicas": (
        H100,
        {**MANY, "replicas": 2, "autoscaling": {"enabled": True}},
        "replicas: 2 and autoscaling.enabled both say how many pods there are; leave replicas out "
        "(--set replicas=null)",
    ),
    "autoscaling": (
        SPARK,
        {"autoscaling": {"enabled": True}, "store": {"accessMode": "ReadWriteMany"}},
        "autoscaling.enabled: rollout recreate is for a node whose GPU is taken",
    ),
    "autoscalingRange": (
        H100,
        {"autoscaling": {"minReplicas": 9}},
        "autoscaling.minReplicas: 9 is above maxReplicas, 4",
    ),
    "spread": (
        H100,
        {"replicas": 2, "rollout": "in-place"},
        "store.accessMode: ReadWriteOnce holds all pods on one node, and 2 replicas may need "
        "another, and would wait for the volume for ever; use ReadWriteMany",
    ),
    "job": (
        H100,
        {"engine": {"build": "job"}},
        "engine.build: the job needs a GPU beside those of the service's pods, and rollout "
        "recreate says that none is free: they would wait for each other. Use engine.build init",
    ),
    "jobStore": (
        "cpu-demo single-tenant",
        {"engine": {"build": "job"}},
        "engine.build: what a job leaves in an emptyDir goes with its pod",
    ),
    "readOnlyStore": (
        H100,
        {"store": {"readOnly": True}},
        "store.readOnly: nothing can be built into it; set engine.build=none",
    ),
    "claim": (
        H100,
        {"store": {"mode": "existingClaim"}},
        "store.claim: goes with store.mode existingClaim, which needs the name of a claim in",
    ),
    "hostPath": (
        H100,
        {"store": {"mode": "hostPath"}},
        "store.path: goes with store.mode hostPath, which needs an absolute path of each node",
    ),
    "airGapped": (
        H100,
        {"model": {"airGapped": True}},
        "model.airGapped: hf://google/diffusiongemma-26B-A4B-it is on the hub; set model.source to "
        "a directory of model.volume",
    ),
    "checkpoint": (
        H100,
        {"model": {"source": "/models/checkpoint"}},
        "model.source: /models is where model.volume is mounted, and none is set",
    ),
    "filled": (
        H100,
        {"model": {"source": ""}},
        "model.source: empty means that the store is filled; set engine.build=none too",
    ),
    "revision": (
        "cpu-demo single-tenant",
        {"model": {"revision": REVISION}},
        "model.revision: a commit of the hub, and model.source is /opt/nim/demo",
    ),
    "memory": (
        SPARK,
        {"resources": {"limits": {"memory": "110Gi"}}},
        "resources.limits.memory: 110Gi leaves less than 16 of 119 GiB for the system, and GPU and "
        "system share them: where they run out, the machine stands still; at most 103Gi",
    ),
    "tenants": (
        MULTI,
        {"tenancy": {"existingSecret": ""}},
        "tenancy: mode multi needs tenants: name a secret with a key tenants.yaml",
    ),
    "tenantsTwice": (
        MULTI,
        {"tenancy": {"tenants": TENANTS}},
        "tenancy: existingSecret dgemma-tenants holds the tenants already",
    ),
    "tenantsUnused": (
        H100,
        {"tenancy": {"existingSecret": "tenants"}},
        "tenancy.mode: single lets everybody in without a key, and tenants or an API key are set",
    ),
    "tls": (
        H100,
        {"tls": {"mode": "tls"}},
        "tls: mode tls or mtls and tls.secret, with tls.crt, tls.key and ca.crt, go together; mode "
        "is tls, the secret not set",
    ),
    "mtls": (
        H100,
        {"tls": {"mode": "mtls", "secret": "a"}},
        "tls.clientSecret: goes with tls.mode mtls, where Prometheus and `helm test` need a",
    ),
    "gateway": (
        H100,
        {"gateway": {"enabled": True}},
        "gateway.parentRefs: empty; name the Gateway that the routes belong to",
    ),
    "ingress": (H100, {"ingress": {"enabled": True}}, "ingress.host: not set; name the host"),
    "baselinePlatform": (
        H100,
        {"baseline": {"enabled": True, "engine": "trtllm"}},
        "baseline.engine: trtllm (nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc17) is known to run "
        "google/gemma-4-26B-A4B-it on dgx-station, not on h100",
    ),
    "extraEnv": (
        H100,
        {"extraEnv": [{"name": "DGEMMA_SLOTS", "value": "2"}]},
        "extraEnv: DGEMMA_SLOTS is set by the chart already",
    ),
    "extraVolumes": (
        H100,
        {"extraVolumes": [{"name": "tls", "emptyDir": {}}]},
        "extraVolumes: tls is a volume of the chart's own; choose another name",
    ),
    "podLabels": (
        H100,
        {"podLabels": {"app.kubernetes.io/name": "mine"}},
        "podLabels: app.kubernetes.io/name is what the chart finds its pods by",
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_breaks_a_rule_is_refused_with_what_to_do(rule: str) -> None:
    pair, values, said = BROKEN[rule]
    with pytest.raises(Refused) as caught:
        render(values_of(pair, values))
    assert f"\n- {said}" in str(caught.value)
    assert str(caught.value).count("\n- ") == 1, "one mistake, one complaint"


def test_every_rule_is_asked_for_and_broken_here() -> None:
    texts = [path.read_text() for path in TEMPLATES.rglob("*") if path.is_file()]
    defined = {name for text in texts for name in re.findall(r'define "dgemma\.rule\.(\w+)"', text)}
    listed = (TEMPLATES / "_validate.tpl").read_text().split("range list")[1].split("-}}")[0]
    asked = set(re.findall(r'"(\w+)"', listed))
    assert defined == asked == set(BROKEN)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(Refused) as caught:
        render({})
    for what in ("image.repository", "platform"):
        assert f"\n- {what}: not set" in str(caught.value)


def test_the_hub_s_token_is_set_once() -> None:
    twice = {"model": {"hfToken": {"secret": "hub"}}, "extraEnv": [{"name": "HF_TOKEN"}]}
    with pytest.raises(Refused, match="extraEnv: HF_TOKEN is set by the chart already"):
        render(values_of(H100, twice))


@pytest.mark.parametrize("image", ["vllm", "trtllm"])
def test_no_baseline_is_the_latest_either(image: str) -> None:
    with pytest.raises(Refused, match=rf"baseline\.{image}\.image: latest is another image"):
        render(values_of(H100, {"baseline": {image: {"image": "a/b:latest"}}}))
