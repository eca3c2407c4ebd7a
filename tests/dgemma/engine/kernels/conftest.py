from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dgemma.engine.kernels.interpreter import exact


@pytest.fixture(autouse=True, scope="session")
def exact_interpreter() -> Iterator[None]:
    with exact():
        yield
