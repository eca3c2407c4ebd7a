"""A checkpoint that others quantised, as the rows of a store: re-laid out, not quantised again.

Knows how to check contents: what a scale may be and what a payload may hold; which tensors stand
for which parameter is `dgemma_build.quantize.inventory`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import Checkpoint, hf_name
from dgemma.precision import BLOCK_SCALE, FORMATS, ROW_SCALE
from dgemma_build.quantize.encode import E2M1_MAX, E4M3_MAX, Rows
from dgemma_build.quantize.inventory import Inventory
from dgemma_build.quantize.layouts import Layout
from dgemma_build.quantize.matrices import Matrix, matrices
from dgemma_build.quantize.reader import Reader
from dgemma_build.quantize.source import copied

# A scale of the right kind is the largest weight / 2688; taken for its reciprocal, it implies a
# largest weight of 2688^2 / the true one. So what exceeds this more likely is the other kind.
IMPLAUSIBLE = E2M1_MAX * E4M3_MAX
NAN = 0x7F  # e4m3's, but for the sign


class ImportedSource:
    """Payload bytes as they are; scales per row in place of one per matrix."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: Reader,
        shapes: Mapping[str, tuple[int, ...]],
        layout: Layout,
    ) -> None:
        """Raises ConfigurationError naming tensors that are missing, unknown or not quantised."""
        self._inventory = Inventory.of(checkpoint.directory, reader.entries, shapes, layout)
        self.policy = self._inventory.policy
        self.origin = layout.name
        self._layout = layout
        self._reader = reader
        self._shapes = shapes

    def rows(self, name: str) -> Iterator[Rows]:
        format = self.policy.format_of(name)
        if not format.is_quantized:
            dtype = self.policy.tensors({name: self._shapes[name]})[name].torch_dtype
            yield from copied(self._reader, self._inventory.names[hf_name(name)], dtype)
            return
        for matrix in matrices(name, self._shapes[name]):
            yield self._matrix(matrix)

    def _matrix(self, matrix: Matrix) -> Rows:
        layout = self._layout
        format = FORMATS[layout.format]
        payload = self._read(matrix, layout.payload)
        row_scale = self._row_scale(matrix)  # [N, 1]
        largest = row_scale.amax() * E4M3_MAX
        rows = {"": payload, ROW_SCALE: row_scale}
        if format.columns_per_byte == 1:
            if bool(((payload.view(torch.uint8) & NAN) == NAN).any()):
                raise self._fail(matrix, layout.payload, "holds NaN; download the checkpoint again")
        else:
            assert layout.block_scale is not None
            block = self._read(matrix, layout.block_scale)
            if bool((block.view(torch.uint8) >= NAN).any()):
                raise self._fail(matrix, layout.block_scale, "holds NaN or negative scales")
            largest = row_scale.amax() * block.float().amax() * E2M1_MAX
            rows[BLOCK_SCALE] = block
        if largest > IMPLAUSIBLE:
            kinds = ("divisor", "factor")
            read_as, stored_as = kinds if layout.row_scale_divides else kinds[::-1]
            why = (
                f"read as a {read_as}, it implies a largest weight of {largest:.3g}; "
                f"it seems to be a {stored_as}, against what {layout.name} says"
            )
            raise self._fail(matrix, layout.row_scale, why)
        return rows

    def _row_scale(self, matrix: Matrix) -> Tensor:
        stored = self._read(matrix, self._layout.row_scale).float().reshape(-1, 1)
        if not bool(((stored > 0) & stored.isfinite()).all()):
            raise self._fail(matrix, self._layout.row_scale, "expected finite scales above 0")
        scale = stored.reciprocal() if self._layout.row_scale_divides else stored
        return scale.expand(matrix.rows, 1)

    def _read(self, matrix: Matrix, suffix: str) -> Tensor:
        return self._reader.rows(self._inventory.tensor(matrix, suffix))

    def _fail(self, matrix: Matrix, suffix: str, why: str) -> ConfigurationError:
        return ConfigurationError(f"tensor {self._inventory.tensor(matrix, suffix)}: {why}")
