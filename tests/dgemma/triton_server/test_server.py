from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient

from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.kserve import STREAM_INFER
from dgemma.triton_server import server as module
from dgemma.triton_server.installation import Installation
from dgemma.triton_server.processes import kill_session, session_members, started_with
from dgemma.triton_server.server import TritonServer

PATIENCE_S = 60.0
CONFIG = """
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
instance_group [ { kind: KIND_CPU count: 1 } ]
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] optional: true } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
MODEL = """
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        if os.environ["TEST_MODEL"] == "refuse":
            raise pb_utils.TritonModelException("weights.bin: no such file; run make weights")

    def execute(self, requests):
        return None
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a model that does nothing."""
    repository = tmp_path / "models"
    version = repository / "nothing" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return repository


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers of a test keep their files; nothing may be left in it."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the shared memory of a test's server is called: other servers may come and go."""
    name = f"test{os.getpid()}"
    monkeypatch.setattr(secrets, "token_hex", lambda size: name)
    yield name
    for region in regions(name):
        region.unlink()


def regions(own: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"triton_python_backend_shm_region_{own}_*"))


# Real servers


def test_a_server_starts_notices_a_dead_model_and_leaves_nothing(
    models: Path, tmp_path: Path, own: str
) -> None:
    server = TritonServer(models, env={"TEST_MODEL": "work"}, log=tmp_path / "log")
    with server:
        pid = server.pid
        assert regions(own), "a server without shared memory would hide a leak"
        with InferenceServerClient(server.grpc_url) as client:
            assert client.is_model_ready("nothing", client_timeout=PATIENCE_S)
        with urllib.request.urlopen(server.metrics_url, timeout=PATIENCE_S) as metrics:
            assert b"nv_" in metrics.read()
        with pytest.raises(RuntimeError, match="the server is running"):
            server.start()
        server.check()
        [stub] = server.stub_pids()
        os.kill(stub, signal.SIGKILL)
        while stub in server.stub_pids():
            pass
        with pytest.raises(EngineFailure, match="a model's process has died; restart the server"):
            server.check()
    assert session_members(pid) == []
    assert regions(own) == []
    with pytest.raises(EngineFailure, match="tritonserver has ended"):
        server.check()


def test_an_old_connection_is_given_up_behind_its_last_request(
    models: Path, tmp_path: Path, own: str
) -> None:
    server = TritonServer(
        models, env={"TEST_MODEL": "work"}, log=tmp_path / "log", max_connection_age_s=1
    )
    with server, grpc.insecure_channel(server.grpc_url) as channel:
        asked_to_leave, ended = threading.Event(), threading.Event()
        states: list[grpc.ChannelConnectivity] = []

        def seen(state: grpc.ChannelConnectivity) -> None:
            states.append(state)
            if grpc.ChannelConnectivity.READY in states[:-1]:
                asked_to_leave.set()

        channel.subscribe(seen, try_to_connect=True)
        never: queue.Queue[Any] = queue.Queue()
        stream = channel.stream_stream(STREAM_INFER)(iter(never.get, None))
        stream.add_done_callback(lambda call: ended.set())
        assert asked_to_leave.wait(PATIENCE_S)
        assert not ended.wait(1.5), "a request was cut off"
        never.put(None)
        assert ended.wait(PATIENCE_S)


def test_a_model_that_cannot_be_loaded_refuses_the_start_in_its_own_words(
    models: Path, tmp_path: Path, own: str
) -> None:
    server = TritonServer(models, env={"TEST_MODEL": "refuse"}, log=tmp_path / "log")
    with pytest.raises(ConfigurationError) as caught:
        server.start()
    assert str(caught.value) == "weights.bin: no such file; run make weights"
    assert regions(own) == []
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


# What is refused before anything is started


@pytest.mark.parametrize("option", ["grpc_port", "metrics_port"])
def test_a_port_that_is_taken_is_an_error_that_names_it(models: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        name = option.removesuffix("_port").replace("grpc", "gRPC")
        with pytest.raises(
            ConfigurationError,
            match=f"^{name} port {port} of 127.0.0.1 cannot be used: .*; choose another$",
        ):
            TritonServer(models, **{option: port}).start()  # type: ignore[arg-type]


def test_one_port_for_both_is_an_error(models: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = TritonServer(models, grpc_port=port, metrics_port=port, log=tmp_path / "log")
    with pytest.raises(ConfigurationError, match=f"^metrics port {port} of 127.0.0.1 cannot"):
        server.start()


def test_a_host_that_is_not_this_machine_is_an_error(models: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gRPC port 0 of 192\.0\.2\.1 cannot be used"):
        TritonServer(models, host="192.0.2.1").start()


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_no_such_model_repository_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "repository"
    if kind == "a file":
        path.write_text("")
    with pytest.raises(ConfigurationError, match=f"^{path}: no such model repository$"):
        TritonServer(path).start()


def test_a_server_that_was_never_started_can_be_stopped(models: Path) -> None:
    TritonServer(models).stop()


# A tritonserver that misbehaves, played by a script


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Takes the place of tritonserver; a test writes its Python."""
    binary = tmp_path / "tritonserver"
    binary.write_text(f"#!{sys.executable} -S\n")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)

    def find(cls: type[Installation], scratch: Path) -> Installation:
        return cls(binary, None, {})

    monkeypatch.setattr(Installation, "find", classmethod(find))
    return binary


def plays(binary: Path, script: str) -> None:
    binary.write_text(binary.read_text() + script)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Path]:
    """Where an impostor writes the session that it leads, which a failed test may leave running."""
    mark = tmp_path / "session"
    yield mark
    if mark.exists():
        kill_session(int(mark.read_text()))


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(
    impostor: Path, models: Path, tmp_path: Path
) -> None:
    plays(impostor, "import sys\nprint('out of luck')\nsys.exit(3)\n")
    log = tmp_path / "log"
    with pytest.raises(ConfigurationError) as caught:
        TritonServer(models, log=log).start()
    assert str(caught.value) == (
        f"tritonserver ended with code 3 before it was ready; the end of {log}:\nout of luck"
    )


def test_a_server_that_is_not_ready_in_time_is_an_error_and_is_ended(
    impostor: Path, models: Path, tmp_path: Path
) -> None:
    plays(impostor, "import time\ntime.sleep(600)\n")
    server = TritonServer(models, log=tmp_path / "log", start_timeout_s=2.0)
    with pytest.raises(ConfigurationError, match=r"was not ready within 2 s"):
        server.start()
    assert started_with(server._shared_memory) == []


def test_a_server_whose_pid_was_never_told_is_ended_too(
    impostor: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(impostor, "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n")
    plays(impostor, "import time\ntime.sleep(600)\n")
    begun: list[subprocess.Popen[bytes]] = []

    def interrupted(*arguments: object, **options: object) -> None:
        begun.append(popen(*arguments, **options))
        raise KeyboardInterrupt

    popen: Any = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", interrupted)
    server = TritonServer(models, log=tmp_path / "log")
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert started_with(server._shared_memory) == []
    assert begun[0].wait(timeout=10) == -signal.SIGKILL


def test_a_server_that_does_not_want_to_end_is_killed_with_its_children_and_cleaned_up_after(
    impostor: Path,
    models: Path,
    tmp_path: Path,
    session: Path,
    own: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EXIT_GRACE_S", 0.2)
    plays(
        impostor,
        f"""import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
[prefix] = [a.partition("prefix-name=")[2] for a in sys.argv if "prefix-name=" in a]
os.fork()
open(f"/dev/shm/{{prefix}}{{os.getpid()}}", "w").close()
open({str(session)!r}, "w").write(str(os.getsid(0)))
time.sleep(600)
""",
    )
    server = TritonServer(models, log=tmp_path / "log", start_timeout_s=2.0, drain_timeout_s=0)
    with pytest.raises(ConfigurationError, match="not ready"):
        server.start()
    assert session_members(int(session.read_text())) == []
    assert regions(own) == []
