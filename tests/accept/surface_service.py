"""The whole service as its users start it, and what can be seen of it from outside.

Knows commands, ports and processes; knows nothing of what is asked of them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dgemma.triton_server import shared_memory
from dgemma.triton_server.installation import STUB
from tests.bench.__main__ import MODEL_REPOSITORY

MODEL = "dgemma-demo"
COMMAND = "nim-serve"  # it is told everything by the environment
ROLES = ("stub", "triton", "front", "supervisor")
PATIENCE_S = 120.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Surface:
    """A running service; `log` is what all of its processes have printed."""

    http_url: str
    grpc_url: str
    metrics_url: str  # Triton's
    pids: Mapping[str, int]  # of ROLES
    log: Path

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process; 0 where it has ended."""
        return {role: _resident(pid) for role, pid in self.pids.items()}

    def dead(self) -> list[str]:
        """The processes that have ended."""
        return [role for role, size in self.memory().items() if size == 0]


@contextmanager
def surface(
    engine: Path, checkpoint: Path, scratch: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Surface]:
    """The service on free ports of the loopback, ready; `environment` wins over what it is told.

    Everything has been asked to end, and has ended, after the block.
    """
    grpc, metrics, http = _free_ports(3)
    given = {
        "DGEMMA_MODEL_REPOSITORY": str(MODEL_REPOSITORY.resolve()),
        "NIM_MODEL_PATH": str(engine),
        "DGEMMA_CHECKPOINT": str(checkpoint),
        "DGEMMA_HOST": "127.0.0.1",
        "NIM_TRITON_GRPC_PORT": str(grpc),
        "NIM_TRITON_METRICS_PORT": str(metrics),
        "NIM_HTTP_API_PORT": str(http),
        "DGEMMA_HTTP": "1",
        "NIM_SERVED_MODEL_NAME": MODEL,
        "DGEMMA_READY_TIMEOUT_S": "10",
        **(environment or {}),
    }
    log, url = scratch / "service.log", f"http://127.0.0.1:{http}"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = stack.enter_context(_running(given, output.fileno()))
        _wait_until_ready(url, process, log)
        pids = {_role(pid): pid for pid in _family(process.pid)}
        yield Surface(
            url,
            f"127.0.0.1:{grpc}",
            f"http://127.0.0.1:{metrics}/metrics",
            {role: pids[role] for role in ROLES},
            log,
        )


@dataclass(frozen=True)
class Traces:
    """What a service could leave behind; to be made before it is started."""

    regions: frozenset[Path]

    @classmethod
    def before(cls) -> Traces:
        return cls(frozenset(_regions()))

    def left(self, service: Surface) -> list[str]:
        """Its processes and shared memory that exist now."""
        processes = [role for role in service.pids if role not in service.dead()]
        return [*processes, *map(str, _regions() - self.regions)]


def _regions() -> set[Path]:
    return set(shared_memory.DIRECTORY.glob(shared_memory.PREFIX + "*"))


@contextmanager
def _running(environment: Mapping[str, str], output: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name(COMMAND))],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _ready(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service is not ready:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/health/ready", timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:  # also an answer that says no
        return False


def _family(pid: int) -> Iterator[int]:
    """A process and all that came of it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield from _family(int(child))


def _role(pid: int) -> str:
    executable = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    if executable == STUB:
        return "stub"
    if executable == "tritonserver":
        return "triton"
    words = _read(Path(f"/proc/{pid}/cmdline")).split("\0")
    return "front" if "front" in words else "supervisor"


def _resident(pid: int) -> int:
    pages = _read(Path(f"/proc/{pid}/statm")).split()
    return int(pages[1]) * _PAGE if pages else 0


def _read(path: Path) -> str:
    """Nothing where the process has ended."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
