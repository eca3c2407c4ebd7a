"""A checkpoint's weights as the rows of a store's tensors, quantised here.

Knows what a source of rows is, and the one that quantises; knows nothing of files to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import Checkpoint, hf_name
from dgemma.precision import Policy
from dgemma_build.quantize.encode import Rows, encode, tensor_scale_of
from dgemma_build.quantize.matrices import matrices
from dgemma_build.quantize.reader import Reader, is_float

ORIGIN = "dgemma-build"
COPIED = 2**23  # elements that are copied at once
ENCODED = 2**19  # elements that are encoded at once: what an encoder makes of them stays in caches


class Source(Protocol):
    """What a store is written from."""

    policy: Policy
    origin: str  # who quantised the weights, for people

    def rows(self, name: str) -> Iterator[Rows]:
        """All rows of all tensors of a parameter, from the first on.

        Raises ConfigurationError naming a tensor that holds what no weight can be.
        """
        ...


class FloatSource:
    """Weights as they were trained, quantised while they are read."""

    origin = ORIGIN

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: Reader,
        shapes: Mapping[str, tuple[int, ...]],
        policy: Policy,
    ) -> None:
        """Raises ConfigurationError naming tensors that are missing, unknown or no weights."""
        checkpoint.validate({hf_name(name): shape for name, shape in shapes.items()})
        for name in map(hf_name, shapes):
            if not is_float(reader.entries[name]):
                raise ConfigurationError(
                    f"{checkpoint.directory}: tensor {name} is {reader.entries[name].spec.dtype}, "
                    "but config.json states no quantization; expected F32, BF16 or F16"
                )
        policy.tensors(shapes)  # refuses a parameter whose columns do not fill groups
        self.policy = policy
        self._reader = reader
        self._shapes = shapes

    def rows(self, name: str) -> Iterator[Rows]:
        format = self.policy.format_of(name)
        if not format.is_quantized:
            dtype = self.policy.tensors({name: self._shapes[name]})[name].torch_dtype
            yield from copied(self._reader, hf_name(name), dtype)
            return
        first = 0
        for matrix in matrices(name, self._shapes[name]):
            weights = self._reader.rows(hf_name(name), first, first + matrix.rows)  # [N, K]
            first += matrix.rows
            scale = tensor_scale_of(_largest(weights, hf_name(name)))
            for some in weights.split(max(1, ENCODED // matrix.columns)):
                yield encode(format, some.float(), scale)


def copied(reader: Reader, name: str, dtype: torch.dtype) -> Iterator[Rows]:
    """A tensor that is not quantised, in another float type where need be."""
    spec = reader.entries[name].spec
    columns = spec.shape[-1]
    count = spec.nbytes // (columns * spec.torch_dtype.itemsize)
    step = max(1, COPIED // columns)
    for start in range(0, count, step):
        values = reader.rows(name, start, min(start + step, count)).to(dtype)
        _largest(values, name)
        yield {"": values}


def _largest(weights: Tensor, name: str) -> Tensor:
    """The largest magnitude; ConfigurationError where one is no finite number."""
    largest = weights.abs().amax()  # NaN where there is one
    if not largest.isfinite():
        raise ConfigurationError(
            f"tensor {name}: holds NaN or infinity; download the checkpoint again"
        )
    return largest
