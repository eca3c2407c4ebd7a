"""Tensors of a Hugging Face checkpoint, by name, one at a time.

Knows safetensors files, shards and the names a DiffusionGemma checkpoint must have; computes
nothing. Names are listed in the model card's layout: one copy of the text weights under
`model.decoder.`, and per layer a second `layer_scalar` for the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")


def hf_name(parameter: str) -> str:
    """The checkpoint's name of a `Network` parameter."""
    if parameter.endswith("encoder_layer_scalar"):
        return ENCODER + parameter.replace("encoder_layer_scalar", "layer_scalar")
    return DECODER + parameter


@dataclass(frozen=True)
class Checkpoint:
    """A directory with `config.json` and safetensors, one file or sharded with an index."""

    directory: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name -> file that holds it; ConfigurationError names what cannot be read."""
        index = self.directory / "model.safetensors.index.json"
        if index.exists():
            return self._sharded(index)
        single = self.directory / "model.safetensors"
        if not single.exists():
            raise ConfigurationError(
                f"{self.directory}: neither model.safetensors nor model.safetensors.index.json; "
                "download the checkpoint again"
            )
        return dict.fromkeys(_names(single), single)

    def _sharded(self, index: Path) -> dict[str, Path]:
        try:
            table: dict[str, str] = json.loads(index.read_text())["weight_map"]
            if not all(isinstance(shard, str) for shard in table.values()):
                raise TypeError("a weight_map gives each tensor the name of a file")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{index}: no readable weight_map: {error!r}; download the checkpoint again"
            ) from None
        present = {shard: _names(self.directory / shard) for shard in sorted(set(table.values()))}
        for name, shard in table.items():
            if name not in present[shard]:
                raise ConfigurationError(f"{index}: {shard} does not hold tensor {name}")
        return {name: self.directory / shard for name, shard in table.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self.files[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in."""
        try:
            with safe_open(self.files[name], "pt") as file:
                return file.get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(f"{self.files[name]}: tensor {name}: {error}") from None

    def validate(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Check every HF name and shape; the vision tower's tensors are known and left out.

        Raises ConfigurationError naming tensors that are missing, unknown or misshapen.
        """
        found = {name for name in self.files if not name.startswith(VISION)}
        missing, unknown = sorted(shapes.keys() - found), sorted(found - shapes.keys())
        if missing:
            raise ConfigurationError(f"{self.directory}: missing tensors: {_some(missing)}")
        if unknown:
            raise ConfigurationError(f"{self.directory}: unknown tensors: {_some(unknown)}")
        for name, wanted in shapes.items():
            if (got := self.shape(name)) != wanted:
                raise ConfigurationError(
                    f"{self.directory}: tensor {name} has shape {list(got)}, "
                    f"config.json implies {list(wanted)}"
                )


def parameter_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of `Network(geometry)`, without allocating it."""
    from dgemma.model.network import Network  # the only user of both; avoids an import cycle

    with torch.device("meta"):
        network = Network(geometry)
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def load_tensors(checkpoint: Checkpoint, geometry: Geometry) -> Iterator[tuple[str, Tensor]]:
    """(parameter name, tensor) one by one after validating all of them."""
    shapes = parameter_shapes(geometry)
    checkpoint.validate({hf_name(name): shape for name, shape in shapes.items()})
    for name in shapes:
        yield name, checkpoint.tensor(hf_name(name))


def fill(module: nn.Module, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Put tensors into a module built on the meta device; each is held once."""
    for name, tensor in tensors:
        owner: Any = module.get_submodule(name.rpartition(".")[0])
        parameter = nn.Parameter(tensor.to(dtype), requires_grad=False)
        setattr(owner, name.rpartition(".")[2], parameter)


def _names(path: Path) -> set[str]:
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; download the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(f"{path}: not a readable safetensors file: {error}") from None


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
