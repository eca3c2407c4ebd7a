"""Real Triton servers for tests, and what is left of them afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgemma.triton_server.processes import Process, session_members
from dgemma.triton_server.server import TritonServer

PATIENCE_S = 60.0
SHARED_MEMORY = Path("/dev/shm")
_READY = re.compile(r'(?:^|")ready: gRPC ([\w.:]+),', re.MULTILINE)  # plain or JSON
_PREFIX_OPTION = "shm-region-prefix-name="


@dataclass(frozen=True)
class Traces:
    """What a tritonserver process could leave behind."""

    session: int
    shared_memory: str  # prefix of its regions

    @classmethod
    def of(cls, pid: int) -> Traces:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        [prefix] = [w.partition(_PREFIX_OPTION)[2] for w in words if _PREFIX_OPTION in w]
        return cls(pid, prefix)

    @property
    def processes(self) -> list[Process]:
        return session_members(self.session)

    @property
    def stub(self) -> int:
        [pid] = [process.pid for process in self.processes if "stub" in process.executable]
        return pid

    @property
    def regions(self) -> list[Path]:
        return list(SHARED_MEMORY.glob(self.shared_memory + "*"))

    def left(self) -> list[object]:
        """Processes and shared memory that exist now."""
        return [*self.processes, *self.regions]


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what `dgemma` reads, or asks about."""
    prefixes = ("NIM_", "DGEMMA_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE_S:g} s in vain: {what}")
        time.sleep(0.005)


@contextmanager
def running(model_repository: Path, env: dict[str, str], log: Path) -> Iterator[TritonServer]:
    """A server in this process's care; nothing of it may be left after the block."""
    with TritonServer(model_repository, env=env, log=log) as server:
        traces = Traces.of(server.pid)
        assert traces.regions, "a server without shared memory would hide a leak"
        yield server
    assert traces.left() == []


class Serve:
    """A `dgemma serve` process and the tritonserver that it looks after."""

    def __init__(self, model_repository: Path, env: dict[str, str], log: Path) -> None:
        self.log = log
        command = [str(Path(sys.executable).with_name("dgemma")), "serve"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--model-repository", str(model_repository)],
                env={**without_settings(os.environ), **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.traces: Traces | None = None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_server(self) -> Traces:
        """Until tritonserver exists; it is not ready yet."""
        wait_for("tritonserver has been started", self._find)
        assert self.traces is not None
        return self.traces

    def wait_until_ready(self) -> str:
        """The gRPC address, once requests can be sent there."""
        wait_for("`dgemma serve` is ready", lambda: self._ended() or _READY.search(self.output))
        assert not self._ended(), self.output
        self.wait_for_server()
        ready = _READY.search(self.output)
        assert ready is not None
        return ready[1]

    def child(self, name: str) -> int:
        """The process that it has started with this word in its command."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if name.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError(f"no {name}")

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        """End whatever a failed test left running."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def _find(self) -> bool:
        if self._ended():
            pytest.fail(f"`dgemma serve` has ended: {self.output}")
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                self.traces = Traces.of(int(child))
            except (OSError, ValueError):
                continue
        return self.traces is not None


@contextmanager
def serving(model_repository: Path, env: dict[str, str], log: Path) -> Iterator[Serve]:
    """`dgemma serve` on free ports; gRPC alone, and without delay, unless `env` says otherwise."""
    defaults = {"DGEMMA_HTTP": "0", "DGEMMA_DRAIN_DELAY_S": "0"}
    ports = ("NIM_TRITON_GRPC_PORT", "NIM_TRITON_METRICS_PORT", "NIM_HTTP_API_PORT")
    free = {**dict.fromkeys(ports, "0"), "DGEMMA_HOST": "127.0.0.1"}
    serve = Serve(model_repository, {**defaults, **env, **free}, log)
    try:
        yield serve
    finally:
        serve.stop()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
