"""Prometheus' own tool and server, where they are installed, and the rules of the chart.

Knows how both are called; knows nothing of what a rule means.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = Path(__file__).resolve().parents[2] / "helm" / "files"
ALERTS, AUTOSCALING = FILES / "alerts.yaml", FILES / "autoscaling.yaml"
DASHBOARDS = sorted((FILES / "dashboards").glob("*.json"))


def tool(name: str) -> str:
    """promtool or prometheus; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package prometheus has it)")
    return found


def promtool(*arguments: object) -> str:
    """What it says; AssertionError with that where it fails."""
    done = subprocess.run(
        [tool("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(file: Path) -> list[dict[str, Any]]:
    """Every rule of a file."""
    groups = yaml.safe_load(file.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Those that show something."""
    found = json.loads(dashboard.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def targets(dashboard: Path) -> list[str]:
    """Every expression of a dashboard."""
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
