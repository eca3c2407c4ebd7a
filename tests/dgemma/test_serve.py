"""What the service's processes are told of its settings; when they run is tested elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dgemma import serve as serving
from dgemma.errors import ConfigurationError
from dgemma.serve import serve
from dgemma.supervisor.events import Exit, Part
from dgemma.supervisor.machine import Policy
from dgemma.supervisor.parts import FrontPart
from dgemma.triton_server.server import TritonServer
from dgemma.triton_server.tls import Tls

VARIABLES = {
    "DGEMMA_HOST": "127.0.0.1",
    "NIM_TRITON_GRPC_PORT": "0",
    "NIM_TRITON_METRICS_PORT": "0",
    "NIM_HTTP_API_PORT": "0",
    "DGEMMA_DRAIN_TIMEOUT_S": "7",
    "DGEMMA_SLOTS": "3",
}


class Stage:
    """In the place of the processes: what they would have been told."""

    def __init__(self) -> None:
        self.server: dict[str, Any] = {}
        self.front: dict[str, str] | None = None
        self.policy = Policy()
        self.on_ready: Any = None


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()

    class Server(TritonServer):
        def __init__(self, model_repository: Path, **arguments: Any) -> None:
            stage.server = {"model_repository": model_repository, **arguments}
            super().__init__(model_repository, **arguments)

    class Front(FrontPart):
        def __init__(self, env: dict[str, str], directory: Path, log: int | None) -> None:
            stage.front = env
            super().__init__(env, directory, log)

    class Machine:
        def __init__(self, policy: Policy) -> None:
            stage.policy = policy

    class Supervisor:
        def __init__(self, machine: Machine, parts: dict[Part, Any], **options: Any) -> None:
            stage.on_ready = options["on_ready"]
            assert set(parts) == set(stage.policy.parts)

        async def run(self) -> Exit:
            stage.on_ready()
            return Exit(0)

    for name, value in {"TritonServer": Server, "FrontPart": Front, "Machine": Machine}.items():
        monkeypatch.setattr(serving, name, value)
    monkeypatch.setattr(serving, "Supervisor", Supervisor)
    monkeypatch.setattr(serving, "configure", lambda *arguments: None)
    given = {"NIM_MODEL_PATH": str(tmp_path), "DGEMMA_CHECKPOINT": str(tmp_path), **VARIABLES}
    # Nothing of the machine's own; and `serve` changes the environment, for what it starts.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for variable in list(os.environ):
        if variable.startswith(("NIM_", "DGEMMA_")):
            del os.environ[variable]
    os.environ.update(given)
    yield stage


def test_the_settings_reach_the_server_and_its_models(stage: Stage, tmp_path: Path) -> None:
    given = ["DGEMMA_SLOTS=5", "DGEMMA_GRPC_MAX_CONNECTION_AGE_S=9"]
    assert serve([f"DGEMMA_MODEL_REPOSITORY={tmp_path}", *given]) == Exit(0)
    environment = stage.server.pop("env")
    assert stage.server == {
        "model_repository": tmp_path,
        "host": "127.0.0.1",
        "grpc_port": 0,
        "metrics_port": 0,
        "log": None,
        "drain_timeout_s": 7,
        "max_connection_age_s": 9,
        "tls": None,
    }
    assert environment["NIM_MODEL_PATH"] == str(tmp_path)
    assert environment["DGEMMA_SLOTS"] == "5"
    assert len(environment["DGEMMA_PROBE_KEY"]) > 40


def test_every_service_has_a_probe_key_of_its_own(stage: Stage) -> None:
    keys = set()
    for _ in range(2):
        serve()
        keys.add(stage.server["env"]["DGEMMA_PROBE_KEY"])
    assert len(keys) == 2


def test_the_front_is_told_where_triton_is(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    serve()
    [said] = capsys.readouterr().out.splitlines()
    assert stage.front is not None
    grpc = stage.front["DGEMMA_TRITON_URL"]
    assert said == (
        f"ready: gRPC {grpc}, metrics {stage.front['DGEMMA_TRITON_METRICS_URL']}, "
        f"HTTP http://127.0.0.1:{stage.front['NIM_HTTP_API_PORT']}, 3 slots; Ctrl-C stops it"
    )
    assert not grpc.endswith(":0")
    assert stage.front["NIM_HTTP_API_PORT"] != "0"


def test_the_policy_is_the_operator_s(stage: Stage) -> None:
    serve(
        [
            *("DGEMMA_ON_FAILURE=Exit", "DGEMMA_QUIET_AFTER_S=2", "DGEMMA_STUCK_AFTER_S=9"),
            *("DGEMMA_START_TIMEOUT_S=99", "DGEMMA_HTTP=0"),
        ]
    )
    assert stage.policy == Policy(
        parts=(Part.TRITON,),
        restart=False,
        quiet_s=2.0,
        stuck_s=9.0,
        start_timeout_s=99,
        drain_timeout_s=7,
    )
    assert stage.front is None


def test_a_simulation_is_announced_as_one(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    serve(["DGEMMA_SIMULATE=h100-fp8"])
    assert "3 slots, simulated h100-fp8; Ctrl-C" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["TLS", "mtls"])
def test_certificates_reach_the_server(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    files = [tmp_path / name for name in ("server.pem", "server.key", "authorities.pem")]
    variables = ("NIM_SSL_CERTS_PATH", "NIM_SSL_KEY_PATH", "NIM_SSL_CA_CERTS_PATH")
    for path in files:
        path.touch()
    named = [f"{variable}={path}" for variable, path in zip(variables, files, strict=True)]
    serve([f"NIM_SSL_MODE={mode}", *named])
    expected = Tls(*files) if mode == "mtls" else Tls(*files[:2])
    assert stage.server["tls"] == expected
    said = capsys.readouterr().out
    assert ", HTTP https://" in said
    assert ", TLS, 3 slots" in said


def test_bad_settings_are_refused_before_a_server_is_made(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match=r"NIM_TRITON_GRPC_PORT: got '70000'.*0 to 65535"):
        serve(["NIM_TRITON_GRPC_PORT=70000"])
    assert stage.server == {}


def test_a_dry_run_makes_no_server(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(dry_run=True) == Exit(0)
    assert stage.server == {}
    assert "DGEMMA_SLOTS = 3  # environment" in capsys.readouterr().out


def test_a_port_for_two_is_refused(stage: Stage) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigurationError, match=f"^NIM_HTTP_API_PORT: got {port}, which is Trit"):
        serve([f"NIM_TRITON_METRICS_PORT={port}", f"NIM_SERVER_PORT={port}"])
