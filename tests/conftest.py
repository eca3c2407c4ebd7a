"""What every test may ask for: the shipped demo checkpoint and its engine; a quiet machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

# Small tensors gain nothing from threads and lose much to whatever else runs; nor do they in the
# processes that tests start, which read this as they import torch.
os.environ["OMP_NUM_THREADS"] = "1"
# Kernels are executed by Triton's interpreter; what compiles them does so in a process of its own.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

import dgemma_build.cpu
from dgemma_build.engine import build_engine
from tests.shared import emitted, locked, shared_directory

if TYPE_CHECKING:
    from tests.model_store import ModelStore

torch.set_num_threads(1)
# The same examples in every run, however slow the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent
# Modules of many seconds come first, so that the workers end at about the same time. Those that
# need the same graphs stand apart, so that no worker waits for what another is emitting.
LONGEST = (
    *("engine/kernels/test_operations.py", "engine/kernels/test_compiled.py"),
    *("parity/test_generation", "triton/test_refuses_to_start", "dgemma_build/test_compile.py"),
    *("parity/test_engines", "triton/test_shutdown", "dgemma_build/test_stitch"),
    *("dgemma_build/test_ensure.py", "helm/test_live"),
    *("parity/test_quantized_engines", "dgemma_build/test_emit", "triton/test_bad_input"),
    *("dgemma_build/test_gpu", "parity/", "triton/", "dgemma_build/quantize/"),
)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        stack = ExitStack()
        stack.enter_context(shared_directory())
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        found = (i for i, place in enumerate(LONGEST) if f"tests/{place}" in item.nodeid)
        return next(found, len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """While a test marked `quiet` runs, none does in another worker."""
    quiet = item.get_closest_marker("quiet") is not None
    with ExitStack() as stack:
        # Whoever waits for quiet keeps the door, or the others might never all be out.
        with locked("door"):
            stack.enter_context(locked("room", exclusive=quiet))
        return (yield)


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return REPOSITORY / "build" / "demo"


@pytest.fixture(scope="session")
def demo_engine(demo_checkpoint: Path) -> Path:
    """The `cpu` engine that `make demo` uses too; it is built once."""
    directory = REPOSITORY / "var" / "engines" / "demo-cpu-fp32"
    with locked("demo-engine"):
        build_engine(demo_checkpoint, "cpu", "fp32", directory)
    return directory


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """Two precisions of a tiny checkpoint; copy it to change it."""
    from tests.model_store import write_model_store  # brings Hugging Face's library

    return write_model_store(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def model_repository() -> Path:
    return REPOSITORY / "model_repository"


@pytest.fixture(scope="module")
def emitted_once() -> Iterator[None]:
    """Engines for `cpu` get a graph that another test had emitted, where it is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dgemma_build.cpu, "emit", emitted)
        yield
