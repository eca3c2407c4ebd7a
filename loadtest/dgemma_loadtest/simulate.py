"""The service itself at a platform's speed: started here for a run, and stopped behind it.

Knows the command line and the environment of the service, as any operator does; imports nothing of
it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dgemma_loadtest import platforms
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.modelled.roofline import Machine

COMMAND = "nim-serve"
CALIBRATION = "h200"  # as the model of `evaluate`, by the sum
CALIBRATIONS = (CALIBRATION, "published", "goal", "floor")
SIMULATED = "simulated"  # what --baseline may be, besides a URL
PATIENCE_S = 120.0
LOG, BASELINE_LOG = "service.log", "baseline.log"


@dataclass(frozen=True)
class Simulated:
    """What is to be served; slots None: as many as the service takes by itself."""

    platform: str  # as h100 or h100-fp8, or as DGEMMA_SIMULATE takes it
    checkpoint: Path
    repository: Path
    slots: int | None = None
    context: int = 32768
    tenants: Path | None = None

    def machine(self) -> Machine:
        """Raises InputError."""
        return Machine.named(self._parts()[0])

    def name(self) -> str:
        """For DGEMMA_SIMULATE. Raises InputError."""
        return f"{self.machine().name}-{self._parts()[1]}"

    def _parts(self) -> tuple[str, str]:
        """The machine and the calibration."""
        place, _, last = self.platform.rpartition("-")
        if last in CALIBRATIONS and self.platform not in platforms.shipped():
            return place, last
        return self.platform, CALIBRATION

    def about(self) -> dict[str, str]:
        """What is known of its machine."""
        precision, name = self.machine().precision, self.name()
        return {"platform": name, "precision": precision, "hardware": f"none: simulated {name}"}

    def environment(self) -> dict[str, str]:
        given = {
            "DGEMMA_SIMULATE": self.name(),
            "DGEMMA_CHECKPOINT": str(self.checkpoint.resolve()),
            "DGEMMA_MODEL_REPOSITORY": str(self.repository.resolve()),
            "NIM_MAX_MODEL_LEN": str(self.context),
            "DGEMMA_HOST": "127.0.0.1",
            "DGEMMA_HTTP": "1",
        }
        if self.slots is not None:
            given["DGEMMA_SLOTS"] = str(self.slots)
        if self.tenants is not None:
            given["DGEMMA_TENANTS"] = str(self.tenants.resolve())
        return given


@dataclass(frozen=True)
class Service:
    grpc_url: str
    http_url: str


@contextmanager
def service(wanted: Simulated, scratch: Path) -> Iterator[Service]:
    """Ready, on free ports of the loopback; it has ended after the block. Raises InputError."""
    program = _program()
    for path, what in ((wanted.checkpoint, "checkpoint"), (wanted.repository, "repository")):
        if not path.is_dir():
            raise InputError(f"simulate: {what}: there is no directory {path}; name one")
    grpc, metrics, http = _free_ports(3)
    ports = {
        "NIM_TRITON_GRPC_PORT": str(grpc),
        "NIM_TRITON_METRICS_PORT": str(metrics),
        "NIM_HTTP_API_PORT": str(http),
    }
    found = Service(f"grpc://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}")
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / LOG).open("wb") as log:
        process = subprocess.Popen(
            [program],
            env={**os.environ, **wanted.environment(), **ports},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the run, which ends first
        )
        try:
            _wait_until_ready(found.http_url, process, scratch / LOG)
            yield found
        finally:
            _end(process)


@contextmanager
def baseline(machine: Machine, scratch: Path) -> Iterator[str]:
    """An autoregressive endpoint at that platform's speed; its URL. Raises InputError."""
    port = _free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "dgemma_loadtest.cli", "baseline")
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / BASELINE_LOG).open("wb") as log:
        process = subprocess.Popen(
            [*command, "--platform", machine.name, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(url, process, scratch / BASELINE_LOG)
            yield url
        finally:
            _end(process)


def _program() -> str:
    beside = Path(sys.executable).with_name(COMMAND)
    found = str(beside) if beside.exists() else shutil.which(COMMAND)
    if found is None:
        raise InputError(
            f"simulate: there is no {COMMAND} here; install the service (`make demo` does), or run "
            "against a deployment with --target"
        )
    return found


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _ready(url):
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise InputError("simulate: the service is not ready:\n" + "\n".join(said))
        time.sleep(0.1)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/health/ready", timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:  # also an answer that says no
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
