"""The torch modules with the weights that an engine has, one layer in memory at a time.

Knows where an engine's weights are and how to hold a network of which only one layer fits; knows
nothing of what is compared. It runs passes as engines do, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dgemma.dequantize import dequantize
from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import check, to_arrays
from dgemma.engine.kv_pool import KVPool
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import Manifest
from dgemma.model.attention import RowIndex
from dgemma.model.checkpoint import fill
from dgemma.model.network import Network
from dgemma.precision import BLOCK_SCALE, ROW_SCALE
from dgemma.weight_store import WeightStore

Parameter = Callable[[str], Tensor]  # name -> real weights


def weights_of(directory: Path, manifest: Manifest, store: Path | None) -> Parameter:
    """The real weights of an engine: its own, or those of the store that it takes."""
    if not manifest.weights:
        if store is None:
            raise ConfigurationError(f"{directory}: has no weights of its own; name its --store")
        return WeightStore.open(store).parameter
    places: dict[str, Path] = {}
    for name in manifest.weights:
        with safe_open(directory / name, "pt") as file:
            places |= dict.fromkeys(file.keys(), directory / name)

    def tensor(name: str) -> Tensor:
        with safe_open(places[name], "pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def parameter(name: str) -> Tensor:
        scales = [
            tensor(n) if n in places else None for n in (name + BLOCK_SCALE, name + ROW_SCALE)
        ]
        if scales == [None, None]:  # what onnxruntime cannot read is stored as it is used
            return tensor(name)
        return dequantize(manifest.policy.format_of(name), tensor(name), *scales)

    return parameter


class StreamedReference:
    """Runs passes; layers are read when a pass reaches them, and forgotten behind it."""

    def __init__(
        self,
        geometry: Geometry,
        capacity: Capacity,
        parameter: Parameter,
        device: torch.device | None = None,
    ) -> None:
        self.geometry, self.capacity = geometry, capacity
        self._parameter, self._device = parameter, device or torch.device("cpu")
        self.pool = KVPool(geometry, capacity.slots, capacity.context)
        with torch.device("meta"):
            self._network = Network(geometry)
        for name, buffer in list(self._network.named_buffers()):
            setattr(self._network, name, buffer.to(self._device))
        names = [name for name, _ in self._network.named_parameters()]
        fill(
            self._network,
            self._read(n for n in names if not n.startswith("layers.")),
            torch.float32,
        )
        for index, layer in enumerate(self._network.layers):
            layer.register_forward_pre_hook(self._enter(f"layers.{index}."))
            layer.register_forward_hook(_leave)

    def embedding(self) -> Tensor:
        return self._network.embed_tokens.weight

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        check(rows, self.geometry, self.capacity)
        rows = [
            r._replace(ids=r.ids.cpu(), soft=None if r.soft is None else r.soft.cpu().float())
            for r in rows
        ]
        inputs: Mapping[str, Tensor] = {
            name: torch.from_numpy(array).to(self._device)
            for name, array in to_arrays(rows, self.geometry, self.capacity).items()
        }
        index = {name: tensor for name, tensor in inputs.items() if name not in ("ids", "soft")}
        pools = [torch.from_numpy(array).to(self._device) for array in self.pool.arrays]
        with self._device:  # the network makes its constants where it is
            # Every token on one expert is the worst case, so nothing ever overflows here.
            room = torch.arange(inputs["ids"].numel())
            hidden: Tensor
            hidden, _, fresh = self._network(
                inputs["ids"], inputs["soft"], RowIndex(**index), room, pools
            )
        self.pool.write(rows, [new.cpu().numpy() for new in fresh])
        return hidden

    def _read(self, names: Iterator[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._parameter(name).to(self._device)) for name in names)

    def _enter(self, prefix: str) -> Callable[[nn.Module, Any], None]:
        def enter(layer: nn.Module, _: Any) -> None:
            names = [name for name, _ in layer.named_parameters()]
            read = self._read(prefix + name for name in names)
            fill(layer, ((name.removeprefix(prefix), t) for name, t in read), torch.float32)

        return enter


def _leave(layer: nn.Module, *_: Any) -> None:
    layer.to("meta")
