from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dgemma import serve as serving
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.serve import serve
from dgemma.triton_server.server import TritonServer
from dgemma.triton_server.tls import Tls

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class FakeServer:
    """A TritonServer without Triton; signals itself at moments that a test chooses."""

    made: FakeServer

    def __init__(self, model_repository: Path, **arguments: Any) -> None:
        self.model_repository, self.arguments = model_repository, arguments
        self.events: list[str] = []
        FakeServer.made = self

    grpc_url = "127.0.0.1:4001"
    metrics_url = "http://127.0.0.1:4002/metrics"
    on_start: Callable[[], None] = staticmethod(lambda: None)
    on_stop: Callable[[], None] = staticmethod(lambda: None)
    on_check: Callable[[], None] = staticmethod(lambda: None)

    def __enter__(self) -> FakeServer:
        self.events.append("start")
        try:
            type(self).on_start()
        except BaseException:
            self.events.append("clean up")
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append("stop")
        type(self).on_stop()
        self.events.append("stopped")

    def check(self) -> None:
        self.events.append("check")
        type(self).on_check()


def send(number: int) -> Callable[[], None]:
    """Sends this process a signal and waits until it has been handled."""

    def act() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.01)

    return act


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeServer]]:
    """The class that `serve` makes its server of; its moments may be set."""

    class Server(FakeServer):
        pass

    monkeypatch.setattr(serving, "TritonServer", Server)
    monkeypatch.setattr(serving, "CHECK_EVERY_S", 0.005)
    for name, value in {
        "NIM_MODEL_PATH": str(tmp_path),
        "DGEMMA_CHECKPOINT": str(tmp_path),
        "DGEMMA_HOST": "127.0.0.1",
        "NIM_TRITON_GRPC_PORT": "4001",
        "NIM_TRITON_METRICS_PORT": "4002",
        "DGEMMA_DRAIN_TIMEOUT_S": "7",
        "DGEMMA_SLOTS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    # A service that waits for a signal that no longer comes must not wait for ever.
    watchdog = threading.Timer(20, send(signal.SIGTERM))
    watchdog.start()
    try:
        with signals_restored():
            yield Server
    finally:
        watchdog.cancel()


@contextmanager
def signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        after = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            signal.signal(number, handler)
        assert after == before, "handlers of signals were left behind"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_server_which_finishes_what_is_in_flight(
    fake: type[FakeServer], number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.on_check = staticmethod(send(number))
    serve(tmp_path)
    assert FakeServer.made.events == ["start", "check", "stop", "stopped"]
    ready, stopping = capsys.readouterr().out.splitlines()
    assert ready.startswith("ready: gRPC 127.0.0.1:4001, metrics http://127.0.0.1:4002/metrics")
    assert "3 slots" in ready
    assert stopping == "stopping: finishing what is in flight"


def test_a_simulation_is_announced_as_one(
    fake: type[FakeServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DGEMMA_SIMULATE", "h100-fp8")
    fake.on_check = staticmethod(send(signal.SIGTERM))
    serve(tmp_path)
    assert "3 slots, simulated h100-fp8; Ctrl-C" in capsys.readouterr().out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_start_ends_it_cleanly(
    fake: type[FakeServer], number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.on_start = staticmethod(send(number))
    with pytest.raises(KeyboardInterrupt):
        serve(tmp_path)
    assert FakeServer.made.events == ["start", "clean up"]
    assert "ready" not in capsys.readouterr().out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_cuts_the_stop_short(
    fake: type[FakeServer], number: int, tmp_path: Path
) -> None:
    fake.on_check = staticmethod(send(signal.SIGTERM))
    fake.on_stop = staticmethod(send(number))
    with pytest.raises(KeyboardInterrupt):
        serve(tmp_path)
    assert FakeServer.made.events == ["start", "check", "stop"]


def test_a_dead_server_ends_the_service_with_its_error(
    fake: type[FakeServer], tmp_path: Path
) -> None:
    def die() -> None:
        if FakeServer.made.events.count("check") == 3:
            raise EngineFailure("tritonserver has ended")

    fake.on_check = staticmethod(die)
    with pytest.raises(EngineFailure, match="tritonserver has ended"):
        serve(tmp_path)
    assert FakeServer.made.events == ["start", *["check"] * 3, "stop", "stopped"]


def test_a_certificate_reaches_the_server(
    fake: type[FakeServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.on_check = staticmethod(send(signal.SIGTERM))
    files = [tmp_path / "server.pem", tmp_path / "server.key"]
    monkeypatch.setenv("NIM_SSL_MODE", "TLS")
    for path, variable in zip(files, ("NIM_SSL_CERTS_PATH", "NIM_SSL_KEY_PATH"), strict=True):
        path.touch()
        monkeypatch.setenv(variable, str(path))
    serve(tmp_path)
    assert FakeServer.made.arguments["tls"] == Tls(*files)
    assert ", TLS, 3 slots" in capsys.readouterr().out


def test_the_settings_reach_the_server_and_its_models(
    fake: type[FakeServer], tmp_path: Path
) -> None:
    fake.on_check = staticmethod(send(signal.SIGTERM))
    serve(tmp_path / "repository")
    made = FakeServer.made
    environment = made.arguments.pop("env")
    assert made.model_repository == tmp_path / "repository"
    assert made.arguments == {
        "host": "127.0.0.1",
        "grpc_port": 4001,
        "metrics_port": 4002,
        "log": None,
        "start_timeout_s": 1800,
        "drain_timeout_s": 7,
        "tls": None,
    }
    assert environment["NIM_MODEL_PATH"] == str(tmp_path)
    assert environment["DGEMMA_SLOTS"] == "3"


def test_the_real_server_takes_what_serve_gives(fake: type[FakeServer], tmp_path: Path) -> None:
    fake.on_check = staticmethod(send(signal.SIGTERM))
    serve(tmp_path)
    TritonServer(FakeServer.made.model_repository, **FakeServer.made.arguments)


def test_bad_settings_are_refused_before_a_server_is_made(
    fake: type[FakeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIM_TRITON_GRPC_PORT", "70000")
    monkeypatch.setattr(serving, "TritonServer", None)
    with pytest.raises(ConfigurationError, match=r"NIM_TRITON_GRPC_PORT: got '70000'.*0 to 65535"):
        serve(tmp_path)


def test_signals_do_what_they_did_before_when_the_service_has_ended(
    fake: type[FakeServer], tmp_path: Path
) -> None:
    seen = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.set())
    try:
        fake.on_check = staticmethod(send(signal.SIGTERM))
        serve(tmp_path)
        assert not seen.is_set()
        send(signal.SIGTERM)()
        assert seen.wait(20)
    finally:
        signal.signal(signal.SIGTERM, previous)
