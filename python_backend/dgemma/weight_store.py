"""A weight store's tensors, one at a time.

Knows where bytes stand and how to turn them into tensors or into the real weights they stand for;
knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgemma.dequantize import dequantize
from dgemma.errors import ConfigurationError
from dgemma.precision import BLOCK_SCALE, ROW_SCALE
from dgemma.store_manifest import StoreManifest


@dataclass(frozen=True)
class WeightStore:
    """A directory that `dgemma-build quantize` wrote."""

    directory: Path
    manifest: StoreManifest

    @classmethod
    def open(cls, directory: Path, deep: bool = False) -> WeightStore:
        """Raises ConfigurationError for what is no store, or not whole; `deep` checks hashes."""
        manifest = StoreManifest.read(directory)
        manifest.verify(directory, deep)
        return cls(directory, manifest)

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored; KeyError for a name that the store does not have."""
        record = self.manifest.tensors[name]
        path = self.directory / record.file
        data = torch.empty(record.spec.nbytes, dtype=torch.uint8)
        try:
            with path.open("rb") as file:
                file.seek(record.offset)
                got = file.readinto(data.numpy().data)
        except OSError as error:
            raise ConfigurationError(f"{path}: tensor {name}: {error}") from None
        if got != len(data):
            raise ConfigurationError(f"{path}: tensor {name}: the file ends early")
        return data.view(record.spec.torch_dtype).view(record.shape)

    def parameter(self, name: str) -> Tensor:
        """The real weights of a parameter: fp32 where it is quantised, else as stored."""
        format = self.manifest.policy.format_of(name)
        payload = self.tensor(name)
        if not format.is_quantized:
            return payload
        block = self.tensor(name + BLOCK_SCALE) if format.block_scale is not None else None
        row = self.tensor(name + ROW_SCALE) if format.row_scale is not None else None
        return dequantize(format, payload, block, row)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, real weights) of every parameter, one by one, for `model.checkpoint.fill`."""
        for name in self.manifest.parameters:
            yield name, self.parameter(name)
