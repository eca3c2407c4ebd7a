"""What serves, in labels.

Knows selection, manifest and the report of a verification beside it; knows nothing of how an engine
is verified.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from dgemma.engine.kernel_sources import executed
from dgemma.manifest import Manifest
from dgemma.profiles.layout import REPORT
from dgemma.profiles.selection import Selection
from dgemma.simulated.simulation import Simulation

logger = logging.getLogger(__name__)

MEASURED, NEVER = "measured", "never verified"


def profile_info(selection: Selection) -> tuple[str, ...]:
    """Labels of dgemma_profile_info, so that a fleet that fell back can be seen."""
    fell_back = str(bool(selection.fell_back_from)).lower()
    return selection.name, selection.id, selection.revision, fell_back, selection.wanted


def engine_info(selection: Selection, simulation: Simulation | None) -> tuple[str, ...]:
    """Labels of dgemma_engine_info."""
    if simulation is not None:
        platform = simulation.platform
        return selection.name, platform.target.name, platform.precision, NEVER, simulation.name
    directory = Path(selection.directory)
    manifest = Manifest.read(directory)
    state = verification(directory, executed(manifest))
    return selection.name, manifest.target, manifest.precision, state, "false"


def verification(directory: Path, graph_sha256: str) -> str:
    """Whether a report says that passes of just this graph ran on a device and were right."""
    path = directory / REPORT
    try:
        report = json.loads(path.read_text())
        passed = report["executed"] is True and report["passed"] is True
        measured = passed and report["engine"]["graph_sha256"] == graph_sha256
    except FileNotFoundError:
        return NEVER
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("%s: not a report of a verification, and not counted: %r", path, error)
        return NEVER
    return MEASURED if measured else NEVER
