"""Geometries by name: what can be estimated and compiled without a checkpoint at hand.

Each is a folder with the `config.json` of a public model, read as a checkpoint's is; knows nothing
of weights.
"""

from __future__ import annotations

from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry

DEFAULT = "diffusiongemma-26b-a4b"
_SHIPPED = Path(__file__).parent


def geometry_names() -> list[str]:
    return sorted(path.parent.name for path in _SHIPPED.glob("*/config.json"))


def named_geometry(name: str) -> Geometry:
    """ConfigurationError lists the names where there is no such geometry."""
    return Geometry.from_checkpoint(directory_of(name))


def directory_of(name: str) -> Path:
    """Where its `config.json` is; ConfigurationError as `named_geometry`."""
    if name not in (names := geometry_names()):
        raise ConfigurationError(
            f"geometry {name!r} is not known; known: {', '.join(names)}; "
            "--checkpoint DIR reads any other from its config.json"
        )
    return _SHIPPED / name
