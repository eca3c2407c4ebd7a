"""Helm, as the tests use it: the binary where there is one, else its SDK.

Knows how a chart is rendered, linted and refused; knows nothing of what is in it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm"
RELEASE, NAMESPACE = "rel", "space"
Object = dict[str, Any]
Values = Mapping[str, Any]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(Exception):
    """Helm does not take these values; its own words."""


@dataclass(frozen=True)
class Rendered:
    """What `helm install` would create; `hooks` are those of `helm test`."""

    objects: list[Object]
    hooks: list[Object]
    notes: str


def documents(manifest: str) -> list[Object]:
    return [found for found in yaml.load_all(manifest, _Loader) if found]


def render(values: Values, chart: Path = CHART) -> Rendered:
    """Raises Refused."""
    release = _by_binary(values, chart) if shutil.which("helm") else _by_sdk(values, chart)
    hooks = documents("\n---\n".join(release["hooks"]))
    return Rendered(documents(release["manifest"]), hooks, release["notes"])


def lint(values: Values, chart: Path = CHART) -> list[str]:
    """What a strict lint complains about."""
    if shutil.which("helm"):
        done = _helm(values, "lint", str(chart), "--strict", "--quiet")
        return [] if done.returncode == 0 else [done.stdout + done.stderr]
    found = _sdk().lint(chart, dict(values), strict=True, namespace=NAMESPACE)
    worst = [m["error"] for m in found["messages"] if m["severity"] > 1]
    return worst + list(found["errors"])


def problems(values: Values) -> str:
    """What the schema of the values says against them; empty where it says nothing."""
    if shutil.which("helm"):
        try:
            render(values)
        except Refused as error:
            return str(error) if "schema" in str(error) else ""
        return ""
    try:
        chart(CHART).validate_schema(dict(values))
    except _sdk().HelmValuesError as error:
        return str(error)
    return ""


@cache
def chart(path: Path) -> Any:
    """The SDK's own chart; closed with the process."""
    return _sdk().Chart.load(path)


def _sdk() -> Any:
    import helm_python

    return helm_python


def _by_sdk(values: Values, path: Path) -> dict[str, Any]:
    try:
        with _sdk().Config(storage_driver="memory", namespace=NAMESPACE) as config:
            release = config.install(chart(path), RELEASE, dict(values), dry_run="client")
    except _sdk().HelmError as error:
        raise Refused(str(error)) from None
    # A client's dry run tells no hooks; the same templates do.
    files = chart(path).render(dict(values), name=RELEASE, namespace=NAMESPACE)
    hooks = [text for text in files.values() if "helm.sh/hook: " in text]
    return {"manifest": release["manifest"], "notes": release["notes"], "hooks": hooks}


def _by_binary(values: Values, path: Path) -> dict[str, Any]:
    done = _helm(values, "install", RELEASE, str(path), "--dry-run=client", "--output=json")
    if done.returncode:
        raise Refused(done.stderr)
    release = json.loads(done.stdout)
    hooks = [hook["manifest"] for hook in release.get("hooks") or []]
    return {"manifest": release["manifest"], "notes": release["info"]["notes"], "hooks": hooks}


def _helm(values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dict(values), file)
        file.flush()
        return subprocess.run(
            ["helm", *arguments, f"--namespace={NAMESPACE}", f"--values={file.name}"],
            capture_output=True,
            text=True,
            check=False,
        )
