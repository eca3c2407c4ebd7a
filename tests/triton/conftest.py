"""A real Triton server with the demo's engine, for all tests that need no server of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dgemma.settings import Settings
from dgemma.triton_server.server import TritonServer
from tests.triton.servers import running


@pytest.fixture(scope="session")
def demo_environment(demo_engine: Path, demo_checkpoint: Path) -> dict[str, str]:
    """Settings that serve the demo, and leave a core to the tests' clients."""
    return Settings.load(engine=demo_engine, checkpoint=demo_checkpoint, threads=1).environment()


@pytest.fixture(scope="session")
def server(
    demo_environment: dict[str, str],
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "server.log"
    with running(model_repository, demo_environment, log) as server:
        yield server


@pytest.fixture(scope="session")
def url(server: TritonServer) -> str:
    return server.grpc_url
