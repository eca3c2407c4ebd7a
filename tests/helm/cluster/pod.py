"""A pod's containers as processes of this machine, looked after as the kubelet does.

Knows init containers, probes with their real periods, restarts, preStop and the grace period; knows
nothing of what runs in them. What needs a kernel's help (users, read-only root, limits) is not done
here: `make image-check` does that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helm.cluster.machine import Mounted, Objects, environment, new_address
from tests.helm.cluster.probe import Probe

_LOOK_S = 0.02
PATIENCE_S = 180.0


@dataclass
class Seen:
    """What has happened to a pod; moments by `time.monotonic`."""

    init_exits: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    ready: list[tuple[float, bool]] = field(default_factory=list)  # each change
    liveness_failures: int = 0
    startup_failures: int = 0
    pre_stop: int | None = None  # exit code
    killed: bool = False  # by SIGKILL, the grace period being over


class Pod:
    """Runs from `start` until `delete` has come to its end."""

    def __init__(
        self, name: str, template: Mapping[str, Any], root: Path, objects: Objects | None = None
    ) -> None:
        self.name, self.spec, self.root = name, template["spec"], root / name
        self.objects = objects or Objects()
        self.address = new_address()
        self.seen = Seen()
        self._deleted, self.gone = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self.failure: BaseException | None = None

    @property
    def ready(self) -> bool:
        return bool(self.seen.ready) and self.seen.ready[-1][1]

    @property
    def deleted(self) -> bool:
        return self._deleted.is_set()

    @property
    def serving(self) -> bool:
        """Whether the endpoints of a Service list it."""
        return self.ready and not self.deleted

    @property
    def log(self) -> str:
        path = self.root / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Pod:
        self.root.mkdir(parents=True)
        self._thread.start()
        return self

    def wait_ready(self) -> float:
        """Seconds since its container was started."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.ready:
            assert not self.gone.is_set() and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(_LOOK_S)
        return self.seen.ready[-1][0] - self.seen.started[-1]

    def delete(self) -> None:
        """As `kubectl delete pod --wait=false`."""
        self._deleted.set()

    def wait_gone(self) -> int:
        """The exit code of its container."""
        assert self.gone.wait(PATIENCE_S + self.spec["terminationGracePeriodSeconds"])
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        return self.seen.exits[-1]

    def close(self) -> None:
        """End it whatever has happened, without any grace."""
        self._deleted.set()
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join()

    # The kubelet's work

    def _run(self) -> None:
        try:
            for container in self.spec.get("initContainers", ()):
                self._init(container)
            while not self.deleted:
                self._once(self.spec["containers"][0])
        except BaseException as error:
            self.failure = error
        finally:
            self._set_ready(False)
            self.gone.set()

    def _init(self, container: Mapping[str, Any]) -> None:
        while not self.deleted:
            process = self._spawn(container, f"{container['name']}.log")
            self._process = process
            while process.poll() is None:
                if self._deleted.wait(_LOOK_S):
                    process.terminate()
                    process.wait(30)
            self.seen.init_exits.append(process.returncode)
            if process.returncode == 0:
                return

    def _once(self, container: Mapping[str, Any]) -> None:
        """One life of the main container."""
        self.seen.started.append(time.monotonic())
        process = self._process = self._spawn(container, "server.log")
        startup = Probe(container, "startupProbe", self.address)
        readiness = Probe(container, "readinessProbe", self.address)
        liveness = Probe(container, "livenessProbe", self.address)
        up = startup.absent
        while process.poll() is None and not self.deleted:
            if not up:
                up = startup.due() and startup.ask()
                self.seen.startup_failures = startup.failures
                dead = startup.exhausted
            else:
                if readiness.due():
                    if readiness.ask():
                        self._set_ready(True)
                    elif readiness.exhausted:
                        self._set_ready(False)
                if liveness.due() and not liveness.ask():
                    self.seen.liveness_failures += 1
                dead = liveness.exhausted
            if dead:
                self._terminate(container, process)
            time.sleep(_LOOK_S)
        if process.poll() is None:
            self._terminate(container, process)
        self._set_ready(False)
        self.seen.exits.append(process.wait())

    def _terminate(self, container: Mapping[str, Any], process: subprocess.Popen[bytes]) -> None:
        """preStop, SIGTERM and, once the grace period of both is over, SIGKILL."""
        until = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        if (hook := container.get("lifecycle", {}).get("preStop")) is not None:
            done = subprocess.Popen(hook["exec"]["command"], env=self._environment(container))
            with suppress(subprocess.TimeoutExpired):
                done.wait(until - time.monotonic())
            self.seen.pre_stop = done.poll()
            done.kill()
        process.terminate()
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.seen.killed = True
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _spawn(self, container: Mapping[str, Any], log: str) -> subprocess.Popen[bytes]:
        mounted = Mounted.of(self.spec, container, self.root, self.objects)
        words = [*container.get("command", ()), *container.get("args", ())]
        with (self.root / log).open("ab") as output:
            return subprocess.Popen(
                [mounted.here(word) for word in words],
                env=self._environment(container),
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        mounted = Mounted.of(self.spec, container, self.root, self.objects)
        given = environment(container, mounted, self.objects, {"metadata.name": self.name})
        # A pod has a network of its own, in which 0.0.0.0 is its address alone.
        return given | {"DGEMMA_HOST": self.address}

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.seen.ready.append((time.monotonic(), ready))
