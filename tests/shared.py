"""What the worker processes of one test run share: graphs that one of them emitted, and locks."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from dgemma.geometry import Geometry
from dgemma_build.graph_cache import cached_graph

_DIRECTORY = "DGEMMA_TESTS_SHARED"


@contextmanager
def shared_directory() -> Iterator[None]:
    """One for the whole run: the processes that are started in this block inherit its name."""
    with tempfile.TemporaryDirectory(prefix="dgemma-tests-") as directory:
        os.environ[_DIRECTORY] = directory
        yield
        del os.environ[_DIRECTORY]


@contextmanager
def locked(name: str, *, exclusive: bool = True) -> Iterator[None]:
    """Keep other workers out of a block; those that are not exclusive may be in it together."""
    with (_directory() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def emitted(
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
    fused: bool = False,
    shared: bool = False,
) -> onnx.ModelProto:
    """What `emit` gives; it is called once in a run, for a graph takes it many seconds.

    For tests of what surrounds a graph, and of what it computes.
    """
    key = hashlib.sha256(repr((geometry, dtype, fused, shared)).encode()).hexdigest()
    with locked(f"graph-{key}"):
        return cached_graph(geometry, dtype, graphs(), fused, shared)


def graphs() -> Path:
    """Where they are, as `cached_graph` keeps them."""
    return _directory() / "graphs"


def _directory() -> Path:
    return Path(os.environ[_DIRECTORY])
