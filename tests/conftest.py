"""What every test may ask for: the shipped demo checkpoint and its engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from dgemma_build.engine import build_engine

if TYPE_CHECKING:
    from tests.model_store import ModelStore

# Small tensors gain nothing from threads and lose much to whatever else runs.
torch.set_num_threads(1)
# The same examples in every run, however slow the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return REPOSITORY / "build" / "demo"


@pytest.fixture(scope="session")
def demo_engine(demo_checkpoint: Path) -> Path:
    """The `cpu` engine that `make demo` uses too; it is built once."""
    directory = REPOSITORY / "var" / "engines" / "demo-cpu-fp32"
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
