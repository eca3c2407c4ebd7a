"""What tells one checkpoint, and one way of quantising it, from another.

Knows which files and which definitions count; hashes a file again only where its size or its time
has changed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import dgemma_build.quantize.encode
import dgemma_build.quantize.imported
from dgemma.checkpoint_manifest import content_digest
from dgemma.model.checkpoint import Checkpoint
from dgemma.precision import FORMATS, Policy
from dgemma.sealed import sha256
from dgemma.store_manifest import SourceRecord
from dgemma_build.quantize.layouts import MODELOPT_FILE

_DEFINITION = (dgemma_build.quantize.encode, dgemma_build.quantize.imported)


def source_records(
    checkpoint: Checkpoint,
    known: Mapping[str, SourceRecord],
    progress: Callable[[str, int, int], None],
) -> dict[str, SourceRecord]:
    """File name -> record; `known` are records of earlier runs, `progress` hears bytes of all."""
    files = {checkpoint.directory / "config.json", *checkpoint.files.values()}
    files |= {path for path in [checkpoint.directory / MODELOPT_FILE] if path.exists()}
    records, done = {}, 0
    total = sum(path.stat().st_size for path in files)
    for path in sorted(files):
        status = path.stat()
        record = known.get(path.name)
        if record is None or (record.size, record.mtime_ns) != (status.st_size, status.st_mtime_ns):
            record = SourceRecord(status.st_size, status.st_mtime_ns, sha256(path))
        records[path.name] = record
        done += record.size
        progress("checkpoint", done, total)
    return records


def source_digest(records: Mapping[str, SourceRecord]) -> str:
    """Changes with the checkpoint's content and not with where or when it was copied."""
    return content_digest({name: record.sha256 for name, record in records.items()})


def recipe_digest(precision: str, policy: Policy, origin: str) -> str:
    """Changes with everything that decides a store's bytes, the checkpoint apart."""
    formats = {name: asdict(format) for name, format in FORMATS.items()}
    stated = json.dumps([precision, policy.to_dict(), origin, formats], sort_keys=True)
    rounding = "".join(inspect.getsource(module) for module in _DEFINITION)
    return hashlib.sha256((stated + rounding).encode()).hexdigest()
