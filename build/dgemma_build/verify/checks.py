"""What can be said of an engine without running it: is it whole, and does it belong here.

Knows which questions there are and in which order; every answer is given elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dgemma.bench.report import Check, Outcome
from dgemma.compatibility import check_store, why_not
from dgemma.engine.weight_bindings import weights_wanted
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.manifest import FILE_NAME, Manifest

# Of an absolute path, all but its last name.
_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/:;,()'\"]+/)+")


@dataclass(frozen=True)
class Subject:
    """An engine and what may stand beside it; all paths are absolute."""

    directory: Path
    manifest: Manifest
    store: Path | None
    checkpoint: Path | None

    def anonymous(self, text: str) -> str:
        """`text` without the places of anything: what is shared says nothing of a file system."""
        known = {self.directory: "ENGINE", self.store: "STORE", self.checkpoint: "CHECKPOINT"}
        places = {str(path): name for path, name in known.items() if path is not None}
        for path in sorted(places, key=len, reverse=True):  # one may lie in another
            text = text.replace(path, places[path])
        return _FOLDERS.sub(".../", text)


def static_checks(subject: Subject, machine: Machine, executed: bool) -> Iterator[Check]:
    """One by one; with `executed` an engine that cannot run here has failed."""
    manifest, directory = subject.manifest, subject.directory

    def check(name: str, look: Callable[[], str]) -> Check:
        try:
            return Check(name=name, outcome="passed", detail=subject.anonymous(look()))
        except ConfigurationError as error:
            return Check(name=name, outcome="failed", detail=subject.anonymous(str(error)))

    yield Check(
        name="manifest",
        outcome="passed",
        detail=f"schema {manifest.schema_version}, {manifest.target} {manifest.precision}",
    )
    yield check("files", lambda: _files(directory, manifest))
    yield _machine(subject, machine, executed)
    if not manifest.weights:
        if subject.store is None:
            reason = "no --store was named, and it has no weights of its own"
            yield Check(name="weights", outcome="skipped", detail=reason)
        else:
            store = subject.store
            yield check("weights", lambda: _weights(directory, manifest, store))
    if subject.checkpoint is not None:
        checkpoint = subject.checkpoint
        yield check("checkpoint", lambda: _geometry(manifest, checkpoint))


def _files(directory: Path, manifest: Manifest) -> str:
    if not manifest.files:
        return "there are none but the manifest"
    manifest.verify(directory)
    size = sum(record.size for record in manifest.files.values())
    return f"{len(manifest.files)} files, {size} bytes, are what was written"


def _machine(subject: Subject, machine: Machine, executed: bool) -> Check:
    runtime = subject.manifest.runtime
    reason = why_not(subject.manifest, machine)
    if reason is None:
        here = machine.runtimes[runtime.flavour]
        return Check(name="machine", outcome="passed", detail=f"{runtime.flavour} {here} runs it")
    same_gpu = (
        machine.gpu is not None and machine.gpu.compute_capability == runtime.compute_capability
    )
    outcome: Outcome = "failed" if executed or same_gpu else "skipped"
    return Check(name="machine", outcome=outcome, detail=subject.anonymous(reason))


def _weights(directory: Path, manifest: Manifest, store: Path) -> str:
    check_store(directory, manifest, store)
    count = len(weights_wanted(directory / FILE_NAME, manifest))
    return f"{count} tensors of the store are what it takes, to the last bit"


def _geometry(manifest: Manifest, checkpoint: Path) -> str:
    if Geometry.from_checkpoint(checkpoint) != manifest.geometry:
        raise ConfigurationError(f"{checkpoint}/config.json: is of another geometry")
    return "has the engine's geometry"
