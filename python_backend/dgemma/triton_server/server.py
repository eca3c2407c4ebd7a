"""One Triton server process, from its start to the last trace of it.

Knows the server's options, how to see that it is ready, and how to end it and whatever it started;
knows nothing of the models.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.triton_server import scratch, shared_memory, with_parent
from dgemma.triton_server.installation import STUB, Installation
from dgemma.triton_server.processes import is_alive, kill_session, session_members, started_with
from dgemma.triton_server.tls import Tls

# After the drain time-out: for models to be unloaded and processes to end.
EXIT_GRACE_S = 15.0
_LAST_LINES = 30
# Protocols of Triton's that need a header which nobody is told. Models cannot be loaded or unloaded
# anyway: Triton's model control is off unless it is asked for.
RESTRICTED = "logging,trace,shared-memory"
# The C library keeps what is freed, apart for each of Triton's threads: with as many arenas as it
# would have, the server's memory creeps up for hours. The environment may say otherwise.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "2"}


class TritonServer:
    """A server on `host`, ready for requests inside the `with` block, gone without trace after it.

    It ends by itself should this process be killed; therefore the thread that starts it has to live
    as long as it should.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        env: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        metrics_port: int = 0,
        log: Path | int | None = None,
        start_timeout_s: float = 300.0,
        drain_timeout_s: int = 30,
        max_connection_age_s: int = 0,
        options: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> None:
        """`env` is added to this process's environment. Port 0 takes a free one. The server writes
        to the file or the descriptor `log`, without one to our stderr. `drain_timeout_s` is what
        running requests get at the end. A gRPC connection of `max_connection_age_s` takes no more
        requests, and is closed behind its last one; 0 sets no such limit. `options` are more of
        tritonserver's own. With `tls`, gRPC is spoken over it alone.
        """
        self._model_repository, self._env = model_repository.resolve(), dict(env or {})
        self._host, self._log, self._options = host, log, tuple(options)
        self._tls = tls
        self._ports = {"gRPC": grpc_port, "metrics": metrics_port}
        self._start_timeout_s, self._drain_timeout_s = start_timeout_s, drain_timeout_s
        self._max_age_s = max_connection_age_s
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._stubs: list[int] = []
        # A prefix of our own: what is left of this server can be told from what others use.
        self._shared_memory = f"{shared_memory.PREFIX}{secrets.token_hex(6)}_"

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def grpc_url(self) -> str:
        """host:port, as tritonclient wants it."""
        return f"{reachable(self._host)}:{self._ports['gRPC']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{reachable(self._host)}:{self._ports['metrics']}/metrics"

    @property
    def ports(self) -> tuple[int, ...]:
        """Those of gRPC and of the metrics; 0 is not chosen yet."""
        return tuple(self._ports.values())

    @property
    def pid(self) -> int:
        """Of tritonserver; it leads a session of its own."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def stub_pids(self) -> list[int]:
        """The processes that run the models' Python."""
        return [member.pid for member in session_members(self.pid) if member.executable == STUB]

    def start(self) -> None:
        """Start and wait until every model is ready.

        Raises ConfigurationError with the model's own words where one cannot be loaded.
        """
        self.launch()
        try:
            deadline = time.monotonic() + self._start_timeout_s
            while not self.ready():
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"tritonserver was not ready within {self._start_timeout_s:g} s"
                        f"{self._last_words()}"
                    )
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise

    def reserve_ports(self) -> None:
        """Choose free ones where any will do, for good; ConfigurationError where one is taken."""
        self._ports = free_ports(self._host, self._ports)

    def launch(self) -> None:
        """Begin to start; `ready` says how far it is. Raises ConfigurationError."""
        if self._process is not None:
            raise RuntimeError("the server is running")
        if not self._model_repository.is_dir():
            raise ConfigurationError(f"{self._model_repository}: no such model repository")
        if self._tls is not None:
            self._tls.check()
        shared_memory.remove_stale()
        scratch.remove_stale()
        self.reserve_ports()
        try:
            self._scratch = scratch.make()
            self._process = self._spawn(Path(self._scratch.name))
        except BaseException:
            if self._process is None:
                self._end_unknown()
            self.kill()
            raise

    def ready(self) -> bool:
        """Whether every model is ready, after `launch`.

        Raises ConfigurationError with the model's own words where one cannot be loaded.
        """
        # The ports open only when all models are loaded or have failed.
        if self._listens() and self._models_ready():
            self._stubs = self.stub_pids()
            return True
        if self._process is None or (code := self._process.poll()) is None:
            return False
        raise ConfigurationError(
            f"tritonserver ended with code {code} before it was ready{self._last_words()}"
        )

    def check(self) -> None:
        """Raise EngineFailure where the server, or a process of its models, is dead."""
        if self._process is None or self._process.poll() is not None:
            raise EngineFailure(f"tritonserver has ended{self._last_words()}")
        if not all(map(is_alive, self._stubs)):
            raise EngineFailure(
                f"a model's process has died; restart the server{self._last_words()}"
            )

    def stop(self) -> None:
        """Let running requests finish, then end every process and remove what they left."""
        try:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(self._drain_timeout_s + EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()  # an interrupt may have cut the wait short

    def terminate(self) -> None:
        """Have running requests finished and the server end; `ended` says when. Then `kill`."""
        if self._process is not None:
            self._process.terminate()

    def ended(self) -> bool:
        """Whether tritonserver itself has ended; what it leaves behind may be there yet."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """End every process at once, and remove what they left: Triton can leave its stubs."""
        process, self._process = self._process, None
        if process is not None:
            kill_session(process.pid)
            process.wait()
            shared_memory.remove(self._shared_memory)
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _end_unknown(self) -> None:
        """End a server that was started when an interrupt came, and whose pid was never told."""
        for process in started_with(self._shared_memory):
            kill_session(process.session)
        shared_memory.remove(self._shared_memory)

    def _spawn(self, directory: Path) -> subprocess.Popen[bytes]:
        installation = Installation.find(directory)
        command = [
            *(sys.executable, "-I", "-S", with_parent.__file__, str(os.getpid())),
            str(installation.binary),
            f"--model-repository={self._model_repository}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            "--disable-auto-complete-config",  # it would run each model's Python twice
            "--exit-on-error=false",  # so that a model's error can be asked for
            f"--exit-timeout-secs={self._drain_timeout_s}",
            "--allow-http=false",
            f"--grpc-address={self._host}",
            f"--grpc-port={self._ports['gRPC']}",
            # The only way in which a model learns who asks: it becomes a request's parameter.
            "--grpc-header-forward-pattern=authorization",
            # Whoever may ask for text must not be able to change the log or open our memory.
            f"--grpc-restricted-protocol={RESTRICTED}:admin={secrets.token_hex(16)}",
            f"--metrics-address={self._host}",
            f"--metrics-port={self._ports['metrics']}",
            *((f"--grpc-max-connection-age={self._max_age_s * 1000}",) if self._max_age_s else ()),
            *(self._tls.options if self._tls else ()),
            *self._options,
        ]
        if installation.backend_directory is not None:
            command.append(f"--backend-directory={installation.backend_directory}")
        log = sys.stderr.fileno() if self._log is None else self._log
        output = log if isinstance(log, int) else log.open("wb")
        try:
            return subprocess.Popen(
                command,
                cwd=directory,  # it is on the models' sys.path
                env={**_ALLOCATOR, **os.environ, **installation.environment, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches us alone, and orphans can be told by their session.
                start_new_session=True,
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def _listens(self) -> bool:
        try:
            with socket.create_connection(self._address, timeout=1.0):
                return True
        except OSError:
            return False

    @property
    def _address(self) -> tuple[str, int]:
        return reachable(self._host), self._ports["gRPC"]

    def _client(self) -> InferenceServerClient:
        if self._tls is None:
            return InferenceServerClient(self.grpc_url)
        return InferenceServerClient(
            self.grpc_url,
            creds=self._tls.credentials(),
            channel_args=list(self._tls.channel_options),
        )

    def _models_ready(self) -> bool:
        with self._client() as client:
            try:
                if client.is_server_ready(client_timeout=5.0):
                    return True
                models = client.get_model_repository_index(client_timeout=5.0).models
            except InferenceServerException:
                return False
        reasons = [_reason(model.reason) for model in models if model.state == "UNAVAILABLE"]
        if reasons:
            raise ConfigurationError("\n".join(reasons))
        return False

    def _last_words(self) -> str:
        if not isinstance(self._log, Path):
            return "; its output is above"
        lines = self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([f"; the end of {self._log}:", *lines])


def reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def free_ports(host: str, ports: Mapping[str, int]) -> dict[str, int]:
    """The same ports, with a free one for 0; ConfigurationError where one is taken."""
    chosen = {}
    with contextlib.ExitStack() as probes:
        for what, port in ports.items():
            probe = probes.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()  # so that the same port cannot be taken twice
            except OSError as error:
                raise ConfigurationError(
                    f"{what} port {port} of {host} cannot be used: {error.strerror}; choose another"
                ) from None
            chosen[what] = int(probe.getsockname()[1])
    return chosen


def _reason(text: str) -> str:
    """What a model said when it could not be loaded, without Triton's words around it."""
    written_for_people = re.fullmatch(r"\w+: TritonModelException: (.*?)\n\nAt:\n.*", text, re.S)
    return written_for_people[1] if written_for_people else text.strip()
