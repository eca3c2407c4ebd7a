"""A store's weights in device memory: read once, hashed on the way, held nowhere else.

Knows how files become tensors of an arena; knows nothing of what they are for. Host memory stays at
one piece of a file however large the store is, which is what counts where host and device share
their memory; the page cache is told to forget what was read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from dgemma.engine.binding_plan import Arena
from dgemma.engine.device import Device
from dgemma.errors import ConfigurationError
from dgemma.store_manifest import REWRITE, StoreManifest, TensorRecord

PIECE = 64 * 2**20

Progress = Callable[[str, int, int], None]  # what, done, total


def load_weights(
    store: Path,
    manifest: StoreManifest,
    arena: Arena,
    memory: Tensor,
    device: Device,
    progress: Progress = lambda what, done, total: None,
    piece: int = PIECE,
) -> None:
    """Fill `memory`, uint8 `[arena.nbytes]`, with the tensors that `arena` has places for.

    Raises ConfigurationError naming a file that is not, to the last bit, what the store's manifest
    says; every file is read to its end, whatever the arena takes of it.
    """
    stage, done = device.staging(piece), 0
    for name, record in manifest.files.items():
        path, digest, at = store / name, hashlib.sha256(), 0
        wanted = _wanted(manifest, arena, name)
        for data in _pieces(path, stage):
            with device.turn():
                for tensor, place in wanted:
                    first = max(tensor.offset, at)
                    last = min(tensor.offset + tensor.spec.nbytes, at + len(data))
                    if first < last:
                        to = place + first - tensor.offset
                        part = data[first - at : last - at]
                        memory[to : to + len(part)].copy_(part, non_blocking=True)
            digest.update(data.numpy().data)  # while the device copies
            device.wait()
            at += len(data)
            progress("weights", done := done + len(data), manifest.size)
        if at != record.size or digest.hexdigest() != record.sha256:
            raise ConfigurationError(f"{path}: its content has changed; {REWRITE}")


def _wanted(manifest: StoreManifest, arena: Arena, file: str) -> list[tuple[TensorRecord, int]]:
    """The tensors of `file` that have a place, and where that begins."""
    return [
        (tensor, arena.places[name].offset)
        for name, tensor in manifest.tensors.items()
        if tensor.file == file and name in arena.places
    ]


def _pieces(path: Path, stage: Tensor) -> Iterator[Tensor]:
    """The file, piece by piece, in `stage`."""
    try:
        with path.open("rb", buffering=0) as file:
            at = 0
            while size := file.readinto(stage.numpy().data):
                yield stage[:size]
                os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_DONTNEED)
                at += size
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}; {REWRITE}") from None
