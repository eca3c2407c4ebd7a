"""What the generator needs of a target: connections, on which a job becomes pieces and an end.

Knows no protocol. Pieces bear the time at which their bytes came, before they were parsed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from dgemma_loadtest.jobs import Job
from dgemma_loadtest.records import Usage
from dgemma_loadtest.run_file import Server

CONNECT_TIMEOUT_S = float(os.environ.get("DGEMMA_LOADTEST_CONNECT_TIMEOUT_S", "20"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer."""

    at_s: float  # of the run's clock
    characters: int
    kind: Literal["block", "text"] = "block"
    block: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The end of a complete answer."""

    at_s: float
    finish_reason: str | None = None
    usage: Usage | None = None


Answer = AsyncGenerator[Piece | End, None]


class Connection(Protocol):
    """For one user; requests on it may overlap."""

    def ask(self, job: Job) -> Answer:
        """Pieces, then one End. Closing the generator cancels the request.

        Raises TargetError where the request fails, TimeoutError where `job.timeout_s` is over.
        """
        ...

    async def close(self) -> None: ...


class Target(Protocol):
    """One server."""

    url: str

    async def connect(self, count: int) -> list[Connection]:
        """So many connections, opened. Raises TargetError where no server answers."""
        ...

    async def describe(self) -> Server:
        """What the server says about itself; asks nothing that takes long."""
        ...

    async def close(self) -> None: ...
