"""Writes a weight store: the order of the steps, what is done already, and what is refused.

Knows when nothing is to be done and where an interrupted run goes on; each step lives in its own
module.
"""

from __future__ import annotations

import errno
import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.model.checkpoint import Checkpoint, parameter_shapes
from dgemma.precision import policy_of
from dgemma.store_manifest import FILE_NAME, StoreManifest, TensorRecord
from dgemma_build.quantize.digest import recipe_digest, source_digest, source_records
from dgemma_build.quantize.imported import ImportedSource
from dgemma_build.quantize.journal import Journal
from dgemma_build.quantize.layouts import layout_of
from dgemma_build.quantize.reader import Reader
from dgemma_build.quantize.shards import Shard, shards, write_shard
from dgemma_build.quantize.source import FloatSource, Source
from dgemma_build.store import layout

SUPPORTED = ("fp8", "int4", "nvfp4", "bf16")
SPARE = 64 * 2**20  # bytes that are to stay free on the disk

Shapes = Mapping[str, tuple[int, ...]]
Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


@dataclass(frozen=True)
class Quantized:
    """What `quantize_checkpoint` wrote, or found."""

    manifest: StoreManifest
    up_to_date: bool


def quantize_checkpoint(
    directory: Path,
    precision: str,
    out: Path,
    policy: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Quantized:
    """Make `out` a weight store of the checkpoint in `directory`; nothing where it is one already.

    Raises ConfigurationError for a checkpoint, precision or policy that do not go together. An
    interrupted run leaves its finished shards beside `out`, and the next one goes on from there.
    """
    if precision not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise ConfigurationError(f"precision {precision!r} is no weight store's; known: {known}")
    older = _older(out)
    geometry = Geometry.from_checkpoint(directory)
    shapes = parameter_shapes(geometry)
    checkpoint = Checkpoint(directory)
    with Reader.open(checkpoint) as reader:
        source = _source(checkpoint, reader, shapes, precision, policy)
        files = shards(source.policy, shapes)
        hashed = (dict(older.sources) if older else {}) | Journal.beside(out).sources
        records = source_records(checkpoint, hashed, progress)
        manifest = StoreManifest(
            precision=precision,
            policy=source.policy,
            geometry=geometry,
            origin=source.origin,
            source=source_digest(records),
            recipe=recipe_digest(precision, source.policy, source.origin),
            tensors=_tensor_records(files),
            files={},
            sources=records,
            versions={"torch": importlib.metadata.version("torch")},
        )
        if older is not None and _is_whole(older, manifest, out, progress):
            return Quantized(older, up_to_date=True)
        with Journal.open(out) as journal:
            journal.start(manifest.source + manifest.recipe, records)
            written = _write(journal, manifest, files, shapes, source, progress)
            journal.close(out)
    return Quantized(written, up_to_date=False)


def _source(
    checkpoint: Checkpoint, reader: Reader, shapes: Shapes, precision: str, policy: str | None
) -> Source:
    wanted = policy_of(precision, policy)
    found = layout_of(checkpoint.directory)
    if found is None:
        return FloatSource(checkpoint, reader, shapes, wanted)
    if found.format != precision:
        raise ConfigurationError(
            f"{checkpoint.directory}: is {found.name} already and cannot be made {precision}; "
            f"use --precision {found.format}, or the BF16 checkpoint"
        )
    source = ImportedSource(checkpoint, reader, shapes, found)
    if policy is not None and source.policy != wanted:
        rules = ", ".join(pattern for pattern, _ in source.policy.rules)
        raise ConfigurationError(
            f"{checkpoint.directory}: what is quantised in it is not --policy {policy} but "
            f"{rules}; leave out --policy to take it over as it is"
        )
    return source


def _older(out: Path) -> StoreManifest | None:
    """The manifest of a store in `out`; None where there is none that can be read."""
    if not (out / FILE_NAME).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigurationError(f"{out}: exists and holds no store; choose another --out")
        return None
    try:
        return StoreManifest.read(out)
    except ConfigurationError:
        return None


def _is_whole(older: StoreManifest, wanted: StoreManifest, out: Path, progress: Progress) -> bool:
    """Whether the store in `out` is the one that is wanted, to the last bit."""
    if (older.source, older.recipe) != (wanted.source, wanted.recipe):
        return False
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress("store", done, older.size)

    try:
        older.verify(out, advance=advance)
    except ConfigurationError:
        return False
    return True


def _write(
    journal: Journal,
    manifest: StoreManifest,
    files: Mapping[str, Shard],
    shapes: Shapes,
    source: Source,
    progress: Progress,
) -> StoreManifest:
    """Every shard that is not finished, then the manifest."""
    sizes = {name: _data_size(shard) for name, shard in files.items()}
    total, done = sum(sizes.values()), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress("weights", done, total)

    missing = []
    for name, size in sizes.items():
        if journal.is_finished(name):
            advance(size)
        else:
            missing.append(name)
    _check_space(journal.directory, sum(sizes[name] for name in missing))
    try:
        for name in missing:
            parameters = [p for p in shapes if p in files[name]]
            path = journal.directory / name
            journal.finish(name, write_shard(path, files[name], parameters, source, advance))
    except ConfigurationError:
        shutil.rmtree(journal.directory)  # of this checkpoint there will be no store
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigurationError(
            f"{journal.directory}: no space left; free some and run the same command again"
        ) from None
    whole = StoreManifest(**vars(manifest) | {"files": {n: journal.finished[n] for n in files}})
    whole.write(journal.directory)
    return whole


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed + SPARE > free:
        raise ConfigurationError(
            f"{directory}: {(needed + SPARE) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are "
            "free; free some space or choose another --out"
        )


def _data_size(shard: Shard) -> int:
    return sum(spec.nbytes for spec in shard.values())


def _tensor_records(files: Mapping[str, Shard]) -> dict[str, TensorRecord]:
    return {
        name: TensorRecord(file, shard[name].dtype, shard[name].shape, place.offset)
        for file, shard in files.items()
        for name, place in layout(shard)[0].items()
    }
