"""Values that the chart is tried with.

Knows names and values; what has to hold of all of them is in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLATFORMS = ("h100", "h100-mig", "dgx-spark", "dgx-station", "cpu-demo")
TENANCIES = ("single-tenant", "multi-tenant")
PAIRS = [f"{platform} {tenancy}" for platform in PLATFORMS for tenancy in TENANCIES]
REVISION = "0123456789abcdef0123456789abcdef01234567"
KEY_HASH = f"sha256:dgk_Xb27QeZk:{'0f' * 16}:{'91' * 32}"
MANY = {"replicas": 3, "rollout": "in-place", "store": {"accessMode": "ReadWriteMany"}}
TENANTS = [
    {
        "name": "acme",
        "weight": 2.5,
        "limits": {"max_running": 4, "max_queued": 0, "tokens_per_minute": 1_000_000},
        "keys": [KEY_HASH],
    },
    {"name": "guests", "keys": [KEY_HASH]},
]
EVERYTHING: Mapping[str, Any] = {
    **MANY,
    "rollout": "surge",
    "engine": {"build": "job"},
    "image": {"pullSecrets": ["registry"]},
    "model": {"hfToken": {"secret": "hub"}, "revision": REVISION, "profile": "some-profile"},
    "tenancy": {
        "existingSecret": "",
        "tenants": TENANTS,
        "sharedPrefixes": [{"text": "You are terse.\n"}, {"token_ids": [2, 105]}],
        "ledgerClaim": "ledgers",
    },
    "tls": {"mode": "mtls", "secret": "server-tls", "clientSecret": "client-tls"},
    "service": {"type": "LoadBalancer", "annotations": {"a.example/b": "c"}},
    "gateway": {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["a.example"]},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "a.example",
        "tlsSecret": "edge-tls",
        "annotations": {"a.example/b": "c"},
    },
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}],
    },
    "monitoring": {
        "serviceMonitor": True,
        "rules": True,
        "dashboards": True,
        "labels": {"release": "prometheus"},
    },
    "scheduling": {
        "runtimeClass": "nvidia",
        "priorityClass": {"create": True},
        "nodeSelector": {"pool": "gpu"},
    },
    "podLabels": {"team": "a"},
    "podAnnotations": {"a.example/b": "c"},
    "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "dgemma"}],
    "extraVolumes": [{"name": "extra", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-extra"},
            "data": {"a": "b"},
        }
    ],
    "tests": {"apiKey": {"secret": "test-key"}},
    "baseline": {"enabled": True, "revision": REVISION, "cacheClaim": "baseline-cache"},
}
# By name: a pair of files, and what is set beside them.
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{pair: (pair, {}) for pair in PAIRS},
    "everything": ("h100 multi-tenant", EVERYTHING),
    "tls": ("h100 single-tenant", {"tls": {"mode": "tls", "secret": "server-tls"}}),
    "autoscaled": (
        "h100 multi-tenant",
        {
            "rollout": "in-place",
            "store": {"accessMode": "ReadWriteMany"},
            "autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 8},
        },
    ),
    "one replica, surge": ("cpu-demo single-tenant", {"rollout": "surge"}),
    "suspended": ("dgx-spark single-tenant", {"suspended": True}),
    "suspended, autoscaled": (
        "h100 single-tenant",
        {
            "suspended": True,
            "rollout": "in-place",
            "store": {"accessMode": "ReadWriteMany"},
            "autoscaling": {"enabled": True},
        },
    ),
    "job beforehand": ("dgx-spark single-tenant", {"suspended": True, "engine": {"build": "job"}}),
    "existing claim": (
        "dgx-station single-tenant",
        {"store": {"mode": "existingClaim", "claim": "models"}},
    ),
    "host path": (
        "h100 single-tenant",
        {"replicas": 2, "rollout": "in-place", "store": {"mode": "hostPath", "path": "/models"}},
    ),
    "empty dir": ("h100 single-tenant", {"store": {"mode": "emptyDir"}}),
    "filled store": (
        "h100 single-tenant",
        {
            "model": {"source": "", "airGapped": True},
            "engine": {"build": "none"},
            "store": {"mode": "existingClaim", "claim": "models", "readOnly": True},
        },
    ),
    "air-gapped": (
        "dgx-spark multi-tenant",
        {
            "networkPolicy": {"enabled": True},
            "model": {
                "source": "/models/checkpoint",
                "airGapped": True,
                "volume": {"persistentVolumeClaim": {"claimName": "checkpoints"}},
            },
        },
    ),
    "pinned": ("h100 single-tenant", {"model": {"revision": REVISION}}),
    "OpenShift": (
        "h100 single-tenant",
        {"security": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
    ),
    "trtllm baseline": (
        "dgx-station single-tenant",
        {"suspended": True, "baseline": {"enabled": True, "engine": "trtllm"}},
    ),
    "digest": ("h100 single-tenant", {"image": {"digest": "sha256:" + "a" * 64}}),
    "another name": ("h100 single-tenant", {"nameOverride": "gemma"}),
}
