"""The whole service as an operator starts it, and what it holds of the machine.

Knows processes, files, shared memory and readiness; knows nothing of faults or of what is asked.
"""

from __future__ import annotations

import http.client
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dgemma.triton_server import scratch, shared_memory
from dgemma.triton_server.processes import session_members
from tests.bench.__main__ import MODEL_REPOSITORY
from tests.triton.scraped import Page
from tests.triton.servers import Serve, Traces, serving

SLOTS = 8
POLL_S = 0.03


@dataclass(frozen=True)
class Held:
    """What the service has open: files by role, its processes and its regions."""

    files: Mapping[str, int]
    processes: int
    regions: int

    def beyond(self, before: Held) -> list[str]:
        """What there is more of than before."""
        more = {
            f"files of {role}": self.files[role] - count for role, count in before.files.items()
        }
        more["processes"] = self.processes - before.processes
        more["regions"] = self.regions - before.regions
        return [f"{count:+d} {what}" for what, count in more.items() if count > 0]


@dataclass
class Service:
    """A running `dgemma serve`; `start_s` is the time it took to be ready."""

    serve: Serve
    grpc: str
    http: str
    start_s: float
    others: frozenset[Path]  # regions of shared memory that were there before it
    temporary: Path  # TMPDIR
    sessions: set[int] = field(default_factory=set)  # of every process that it has ever started

    @property
    def pids(self) -> dict[str, int]:
        """Of each process of the service, which has to be up."""
        triton = Traces.of(self.serve.child("tritonserver"))
        front = self.serve.child("front")
        self.sessions |= {triton.session, front}
        pid = self.serve.process.pid
        return {"supervisor": pid, "triton": triton.session, "stub": triton.stub, "front": front}

    def held(self) -> Held:
        pids = self.pids
        files = {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in pids.items()}
        processes = 1 + sum(len(session_members(pids[role])) for role in ("triton", "front"))
        return Held(files, processes, len(self.regions()))

    def regions(self) -> frozenset[Path]:
        return regions() - self.others

    def left(self) -> list[str]:
        """Of a service that has ended: its processes, shared memory and directories."""
        members = [member for session in self.sessions for member in session_members(session)]
        of_ours = f"{scratch.PREFIX}{self.serve.process.pid}-*"
        directories = self.temporary.glob(of_ours)
        return [*(m.executable for m in members), *map(str, self.regions()), *map(str, directories)]

    def status(self) -> int:
        """Of /v1/health/ready; 0 where nobody answers."""
        connection = http.client.HTTPConnection(self.http, timeout=2.0)
        try:
            connection.request("GET", "/v1/health/ready")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.http}/v1/metrics", timeout=5) as answer:
            return Page.of(answer.read().decode()).total(name)


class Readiness:
    """Asks again and again whether it is ready; `seen` are moments and statuses."""

    def __init__(self, service: Service) -> None:
        self._service, self._over = service, threading.Event()
        self.seen: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Readiness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def first(self, ready: bool, since: float) -> float | None:
        """The first moment since then at which it was, or was not, ready."""
        for asked, status in self.seen:
            if asked >= since and (status == 200) is ready:
                return asked
        return None

    def _ask(self) -> None:
        while not self._over.wait(POLL_S):
            asked = time.monotonic()
            self.seen.append((asked, self._service.status()))


def regions() -> frozenset[Path]:
    """Everybody's."""
    return frozenset(shared_memory.DIRECTORY.glob(shared_memory.PREFIX + "*"))


def within(seconds: float, condition: Callable[[], object]) -> bool:
    """Whether it holds within that time; what cannot be asked at a moment does not hold then."""
    until = time.monotonic() + seconds
    while True:
        with suppress(OSError, ValueError, AssertionError):
            if condition():
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.05)


@contextmanager
def started(
    engine: Path, checkpoint: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """The service on free ports of the loopback, ready; ended after the block, if need be."""
    given = {
        "NIM_MODEL_PATH": str(engine),
        "DGEMMA_CHECKPOINT": str(checkpoint),
        "DGEMMA_HTTP": "1",
        "DGEMMA_DRAIN_DELAY_S": "1",
        "DGEMMA_SLOTS": str(SLOTS),
        "DGEMMA_THREADS": "1",
        "NIM_SERVED_MODEL_NAME": "demo",
        "NIM_JSONL_LOGGING": "1",
        **(environment or {}),
    }
    began, others = time.monotonic(), regions()
    with serving(MODEL_REPOSITORY, given, log) as serve:
        grpc = serve.wait_until_ready()
        took = time.monotonic() - began
        http_url = serve.output.partition(", HTTP http://")[2].partition(",")[0]
        temporary = Path(given.get("TMPDIR", tempfile.gettempdir()))
        yield Service(serve, grpc, http_url, took, others, temporary)
