"""One fast server for all tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loadtest.server import TruthServer, truth_server


@pytest.fixture(scope="session")
def server() -> Iterator[TruthServer]:
    with truth_server("--first-ms", "20", "--block-ms", "10", "--stall-s", "0.5") as running:
        yield running
