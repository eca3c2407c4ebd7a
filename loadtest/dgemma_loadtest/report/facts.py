"""What a server may tell of its machine, under whatever name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma_loadtest.run_file import Run

NAMES = {
    "hardware": ("hardware", "gpu", "device_name", "device"),
    "driver": ("driver", "driver_version"),
    "engine hash": ("engine_hash", "graph_sha256", "plan_sha256", "engine_sha256", "engine"),
}


def found(run: Run, name: str) -> str | None:
    """Anywhere in the server's answers; None where it does not tell."""
    return _find(run.server.more, NAMES[name])


def _find(told: Any, keys: tuple[str, ...]) -> str | None:
    if isinstance(told, Mapping):
        for key in keys:
            if isinstance(told.get(key), str | int | float):
                return str(told[key])
        told = list(told.values())
    if isinstance(told, list):
        return next((said for value in told if (said := _find(value, keys))), None)
    return None
