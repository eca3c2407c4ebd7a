"""Rows of a checkpoint's tensors, read where they stand in its files.

Knows safetensors' byte ranges; knows nothing of names or formats. Files are read and not mapped:
pages of a mapped file count as the process's memory, and a checkpoint has more of them than a
machine has memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import Checkpoint
from dgemma.precision import DTYPES, TensorSpec
from dgemma_build.store import raw


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: what it is, and where its bytes stand."""

    spec: TensorSpec
    path: Path
    offset: int


class Reader:
    """Every tensor of a checkpoint by its name there; rows of those whose dtype is in `DTYPES`."""

    def __init__(self, entries: Mapping[str, Entry], files: Mapping[Path, int]) -> None:
        self.entries = entries
        self._files = files  # open file descriptors

    @classmethod
    @contextmanager
    def open(cls, checkpoint: Checkpoint) -> Iterator[Reader]:
        """Raises ConfigurationError naming a file that cannot be read."""
        files: dict[Path, int] = {}
        entries: dict[str, Entry] = {}
        try:
            for path in sorted(set(checkpoint.files.values())):
                files[path] = os.open(path, os.O_RDONLY)
                entries |= _entries(path)
            listed = {name: entries[name] for name in checkpoint.files}
            yield cls(listed, files)
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start..stop` of a tensor seen as `[rows, last axis]`, in its own dtype."""
        entry = self.entries[name]
        columns = entry.spec.shape[-1] if entry.spec.shape else 1
        row = columns * DTYPES[entry.spec.dtype][0]  # bytes
        stop = entry.spec.nbytes // row if stop is None else stop
        data = torch.empty(stop - start, columns, dtype=entry.spec.torch_dtype)
        self._fill(entry, name, raw(data), entry.offset + start * row)
        return data

    def _fill(self, entry: Entry, name: str, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._files[entry.path], [view[done:]], offset + done)
            except OSError as error:
                raise ConfigurationError(f"{entry.path}: tensor {name}: {error}") from None
            if got == 0:
                raise ConfigurationError(
                    f"{entry.path}: tensor {name}: the file ends early; it was changed meanwhile"
                )
            done += got


def _entries(path: Path) -> dict[str, Entry]:
    """The header of a file that `Checkpoint.files` has already found to be safetensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Entry(
            TensorSpec(tensor["dtype"], tuple(tensor["shape"])),
            path,
            8 + length + tensor["data_offsets"][0],
        )
        for name, tensor in header.items()
    }


def is_float(entry: Entry) -> bool:
    """Whether it is a weight as it was trained."""
    return entry.spec.dtype in ("F32", "BF16", "F16")
