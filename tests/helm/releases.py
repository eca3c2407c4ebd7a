"""What comes of the chart's value sets, rendered once, and how one finds one's way in it.

Knows objects of Kubernetes and their labels; what has to hold of them is in the tests.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any

import yaml

from tests.helm.sdk import CHART, Object, Rendered, render
from tests.helm.variants import VARIANTS


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges value files: the later one wins, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in copy.deepcopy(dict(layer)).items():
            below = result.get(key)
            both = isinstance(value, Mapping) and isinstance(below, Mapping)
            result[key] = merged(below, value) if both else value
    return result


def file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHART / f"{name}.yaml").read_text())
    return loaded


def values_of(pair: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of `PLATFORM TENANCY`, with an image, and with `more`."""
    platform, tenancy = pair.split()
    image = {"image": {"repository": "registry.example/dgemma"}}
    return merged(file(f"platforms/{platform}"), file(f"tenancy/{tenancy}"), image, more or {})


@cache
def release(variant: str) -> Rendered:
    pair, more = VARIANTS[variant]
    return render(values_of(pair, more))


@cache
def all_values(variant: str) -> dict[str, Any]:
    """Of a variant, the chart's defaults included."""
    pair, more = VARIANTS[variant]
    return merged(file("values"), values_of(pair, more))


def everything_of(rendered: Rendered) -> list[Object]:
    return [*rendered.objects, *rendered.hooks]


def of_kind(rendered: Rendered, kind: str, component: str | None = None) -> list[Object]:
    return [
        found
        for found in everything_of(rendered)
        if found["kind"] == kind and component in (None, component_of(found))
    ]


def one(rendered: Rendered, kind: str, component: str | None = None) -> Object:
    [found] = of_kind(rendered, kind, component)
    return found


def component_of(found: Object) -> str | None:
    labels: dict[str, str] = found["metadata"].get("labels") or {}
    return labels.get("app.kubernetes.io/component")


def pods(rendered: Rendered) -> Iterator[tuple[str, Object]]:
    """What runs: the name of the object, and its pod as {metadata, spec}."""
    for found in everything_of(rendered):
        name = f"{found['kind']} {found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found
        elif found["kind"] in ("Deployment", "Job"):
            yield name, found["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    return list(chain(pod["spec"].get("initContainers", []), pod["spec"]["containers"]))


def environment(container: Object) -> dict[str, str]:
    """The variables with a value; those from secrets and fields have an empty one."""
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def labels_of(found: Object) -> dict[str, str]:
    return found["metadata"].get("labels") or {}


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()
