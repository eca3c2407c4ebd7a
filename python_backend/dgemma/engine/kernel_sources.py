"""Which sources decide what kernels compute, and a digest that names them.

Knows names of files; imports none of them, for kernels bring `triton`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dgemma.manifest import Manifest

_ROOM = Path(__file__).parent
_SOURCES = ("kernels/**/*.py", "torch_*.py")


def sources(room: Path = _ROOM) -> list[Path]:
    """The kernels and the network that launches them; `room` is the directory of engines."""
    return sorted(path for pattern in _SOURCES for path in room.glob(pattern))


def sources_digest(room: Path = _ROOM) -> str:
    """SHA-256, in hexadecimal, of all `sources`."""
    digest = hashlib.sha256()
    for path in sources(room):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(room).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def executed(manifest: Manifest) -> str:
    """SHA-256 of what runs of an engine: its graph, or the kernels as they are installed here.

    So a report on kernels says nothing of others, whichever built the engine.
    """
    return manifest.files[manifest.graph].sha256 if manifest.graph else sources_digest()
