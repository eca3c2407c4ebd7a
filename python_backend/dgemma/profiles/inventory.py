"""What is in a model store, as the manifests say it.

Knows how to read a tree of directories; judges nothing but whether each can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgemma.checkpoint_manifest import CheckpointManifest
from dgemma.errors import ConfigurationError
from dgemma.manifest import Manifest
from dgemma.profiles.aside import Aside
from dgemma.profiles.layout import (
    ASIDE,
    DOWNLOAD,
    ENGINE,
    PIN,
    REVISION,
    UNFINISHED,
    UNVERIFIED,
    WEIGHTS,
    directories,
    files,
)
from dgemma.sealed import sha256
from dgemma.store_manifest import StoreManifest

# The names are those of NIM with the target in them; every profile is of one GPU.
NAME = "{flavour}-{target}-{precision}-tp1-pp1"


@dataclass(frozen=True)
class Found:
    """A directory of a store; `written` is the time of its manifest, in seconds of Unix."""

    directory: Path
    size: int
    written: float
    pinned: bool


@dataclass(frozen=True)
class FoundEngine(Found):
    """`id` is the digest of its manifest, which has the digests of its files."""

    id: str
    manifest: Manifest


@dataclass(frozen=True)
class FoundWeights(Found):
    """A weight store; its `id` as of an engine."""

    id: str
    manifest: StoreManifest


@dataclass(frozen=True)
class FoundCheckpoint(Found):
    """A revision of the checkpoint."""

    manifest: CheckpointManifest


@dataclass(frozen=True)
class Broken(Found):
    """What was never finished, or is no longer what its manifest says; `name` says what it is."""

    name: str
    why: str

    @property
    def unfinished(self) -> bool:
        return self.directory.suffix in UNFINISHED


@dataclass(frozen=True)
class SetAside(Broken):
    """An engine that is not to be used."""

    manifest: Manifest


@dataclass(frozen=True)
class Inventory:
    """Everything in `root`."""

    root: Path
    engines: tuple[FoundEngine, ...]
    weights: tuple[FoundWeights, ...]
    broken: tuple[Broken, ...]
    checkpoints: tuple[FoundCheckpoint, ...] = ()

    @property
    def everything(self) -> tuple[Found, ...]:
        return (*self.engines, *self.weights, *self.checkpoints, *self.broken)

    @property
    def set_aside(self) -> list[SetAside]:
        return [found for found in self.broken if isinstance(found, SetAside)]

    @classmethod
    def of(cls, root: Path, deep: bool = False) -> Inventory:
        """Files are held to their sizes, if `deep` to their hashes.

        ConfigurationError where there is no such directory.
        """
        if not root.is_dir():
            raise ConfigurationError(f"{root}: no engine here: no such directory")
        found = [read(directory, deep) for directory in sorted(directories(root))]
        return cls(
            root,
            tuple(f for f in found if isinstance(f, FoundEngine)),
            tuple(f for f in found if isinstance(f, FoundWeights)),
            tuple(f for f in found if isinstance(f, Broken)),
            tuple(f for f in found if isinstance(f, FoundCheckpoint)),
        )


def read(directory: Path, deep: bool = False) -> Found:
    """What a directory holds."""
    kinds = (name for name in (WEIGHTS, REVISION) if (directory / name).exists())
    path = directory / next(kinds, ENGINE)
    try:
        written = path.stat().st_mtime
    except OSError:
        written = directory.stat().st_mtime
    size = sum(file.stat().st_size for file in files(directory))
    found = Found(directory, size, written, (directory / PIN).exists())
    name = directory.name
    if directory.suffix in UNFINISHED:
        why = "left behind by a run that did not finish"
        if (directory / DOWNLOAD).exists():
            why = "a download that did not finish"
        elif directory.suffix == UNVERIFIED:
            why = "an engine that was not verified yet; `dgemma-build ensure` goes on with it"
        return Broken(**vars(found), name=name, why=why)
    try:
        if path.name == REVISION:
            name = f"checkpoint {name}"
            checkpoint = CheckpointManifest.read(directory)
            checkpoint.verify(directory, deep)
            return FoundCheckpoint(**vars(found), manifest=checkpoint)
        if path.name == WEIGHTS:
            weights = StoreManifest.read(directory)
            name = f"{weights.precision} weights"
            weights.verify(directory, deep)
            return FoundWeights(**vars(found), id=sha256(path), manifest=weights)
        engine = Manifest.read(directory)
        name = profile_name(engine)
        if directory.suffix == ASIDE:
            why = f"{directory}: {Aside.read(directory)}"
            return SetAside(**vars(found), name=name, why=why, manifest=engine)
        engine.verify(directory, deep)
        return FoundEngine(**vars(found), id=sha256(path), manifest=engine)
    except ConfigurationError as error:
        return Broken(**vars(found), name=name, why=str(error))


def profile_name(engine: Manifest) -> str:
    return NAME.format(
        flavour=engine.runtime.flavour, target=engine.target, precision=engine.precision
    )
