"""The file that says what an engine directory holds, and whether it still holds it.

Knows the fields; knows nothing of how an engine is built or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgemma.geometry import Geometry
from dgemma.precision import Policy
from dgemma.sealed import FileRecord, Sealed

SCHEMA_VERSION = 4
FILE_NAME = "manifest.json"
REBUILD = "build it again with `dgemma-build engine --checkpoint DIR --target T --precision P`"
_SEALED = Sealed("engine", FILE_NAME, SCHEMA_VERSION, REBUILD)


@dataclass(frozen=True)
class Runtime:
    """What executes an engine; a TensorRT plan runs on one compute capability of one version."""

    flavour: str  # onnxruntime, tensorrt_rtx, tensorrt or torch
    version: str
    compute_capability: int | None = None  # 121 for 12.1; None: any host, or any GPU


@dataclass(frozen=True)
class Binding:
    """An input or output of the graph as it was built; -1 where a size varies."""

    name: str
    dtype: str  # as safetensors spells it; I64 and BOOL for what describes a pass
    shape: tuple[int, ...]
    is_input: bool


@dataclass(frozen=True)
class Link:
    """A plan of some layers, which is executed for each such group of layers in turn."""

    file: str
    names: tuple[str, ...]  # of its inputs and outputs; its own first layer is number 0
    first_layers: tuple[int, ...]  # of each execution: which of the network's layers that is


@dataclass(frozen=True)
class Manifest:
    """What was built, from what, and the files that make it up.

    An engine of kernels, which are compiled where they run, is nothing but its manifest: it has no
    graph, and so no bindings, profiles, chain or files.
    """

    target: str
    precision: str
    policy: Policy  # which weights are quantised, and how
    runtime: Runtime
    geometry: Geometry
    source: str  # digest of the weights, if any, and of the network's definition
    # File name of what the runtime executes: an ONNX graph or a plan of most layers; empty: the
    # network is in this software itself.
    graph: str
    weights: tuple[str, ...]  # file names of the weights, safetensors; none: they are a store's
    bindings: tuple[Binding, ...]
    files: Mapping[str, FileRecord]
    versions: Mapping[str, str]  # of the tools that built it
    # Of a plan: size -> the least and the most of it that each optimisation profile covers. Sizes
    # are rows, pairs, slots, context, ring and capacity.
    profiles: tuple[Mapping[str, tuple[int, int]], ...] = ()
    tail: tuple[str, ...] = ()  # file names of the tail's graphs; none: the tail runs in torch
    # File name of a graph of what the places of a pass's rows decide, whose outputs `graph` takes;
    # None: `graph` works it out itself.
    index: str | None = None
    constants: str | None = None  # `StoreManifest.content` of the weights that a plan holds itself
    # Plans in the order of their execution; none: `graph` is the whole network. `bindings` are the
    # network's, under its own names, and the residual stream between plans.
    chain: tuple[Link, ...] = ()
    # `StoreManifest.source` of the weights that it holds itself; None: it holds none, or it was not
    # kept.
    checkpoint: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def links(self) -> tuple[Link, ...]:
        """What is executed, one plan or several; none without a graph."""
        if not self.graph:
            return ()
        return self.chain or (Link(self.graph, tuple(b.name for b in self.bindings), (0,)),)

    def write(self, directory: Path) -> None:
        """Written last, so that a directory with a manifest is complete."""
        _SEALED.write(
            directory,
            asdict(self) | {"geometry": self.geometry.to_dict(), "policy": self.policy.to_dict()},
        )

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """ConfigurationError where it is missing, corrupt, changed or of another schema."""
        return _SEALED.read(directory, lambda data: cls(**_parsed(data)))

    def verify(self, directory: Path, deep: bool = True) -> None:
        """Check that every file is there with its size and, if `deep`, its hash.

        Raises ConfigurationError naming the first file that differs.
        """
        _SEALED.verify(directory, self.files, deep)


def _parsed(data: dict[str, Any]) -> dict[str, Any]:
    bindings = (b | {"shape": tuple(b["shape"])} for b in data["bindings"])
    ranges = ({k: (low, high) for k, (low, high) in p.items()} for p in data.get("profiles", ()))
    chain = data.get("chain", ())
    return data | {
        "chain": tuple(
            Link(link["file"], tuple(link["names"]), tuple(link["first_layers"])) for link in chain
        ),
        "profiles": tuple(ranges),
        "geometry": Geometry.from_dict(data["geometry"]),
        "policy": Policy.from_dict(data["policy"]),
        "runtime": Runtime(**data["runtime"]),
        "weights": tuple(data["weights"]),
        "tail": tuple(data["tail"]),
        "bindings": tuple(Binding(**b) for b in bindings),
        "files": {name: FileRecord(**record) for name, record in data["files"].items()},
    }
