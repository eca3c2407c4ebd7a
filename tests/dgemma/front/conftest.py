"""A front before a fake Triton, for all tests that need no limits of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx2
import pytest

from dgemma.front.server import running
from dgemma.front.settings import FrontSettings
from tests.dgemma.fake_triton import FakeTriton, Script, answer


class Stage:
    """A fake Triton whose script a test may set; what has arrived is what this test has sent."""

    def __init__(self, fake: FakeTriton) -> None:
        self.fake, self.url = fake, fake.url
        self.reset()

    def play(self, script: Script) -> None:
        self.fake.script = script

    def reset(self) -> None:
        self.fake.script = answer
        self.fake.requests.clear()
        self.fake.metadata.clear()
        self.fake.cancelled = threading.Event()
        self.fake.completed = threading.Event()


@pytest.fixture(scope="session")
def fake_triton() -> Iterator[FakeTriton]:
    with FakeTriton(answer) as fake:
        yield fake


@pytest.fixture(scope="session")
def front(fake_triton: FakeTriton) -> Iterator[str]:
    """The address of a front that never finds out by itself whether the service is ready."""
    settings = FrontSettings.load(
        triton_url=fake_triton.url,
        triton_metrics_url="http://127.0.0.1:1/metrics",
        host="127.0.0.1",
        port=0,
        served_model_name="diffusion, other/name",
    )
    with running(settings) as server:
        yield server.url


@pytest.fixture
def stage(fake_triton: FakeTriton) -> Iterator[Stage]:
    stage = Stage(fake_triton)
    yield stage
    fake_triton.cancelled.set()  # releases scripts that wait for it
    stage.reset()


@pytest.fixture
def http(front: str, stage: Stage) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=front, timeout=20) as client:
        yield client
