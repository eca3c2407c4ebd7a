"""Settings, start and end of the front, and its command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from dgemma.errors import ConfigurationError
from dgemma.front.server import FrontServer, running
from dgemma.front.settings import FrontSettings
from tests.dgemma.fake_triton import FakeTriton, answer, final, response
from tests.dgemma.front.replies import COMPLETIONS

DGEMMA = Path(sys.executable).with_name("dgemma")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("NIM_HTTP_API_PORT", "70000", "0 to 65535"),
        ("NIM_SERVER_PORT", "-1", "0 to 65535"),
        ("DGEMMA_TRITON_URL", "http://x:1", "HOST:PORT"),
        ("DGEMMA_TRITON_METRICS_URL", "ftp://x", "http://"),
        ("NIM_SERVED_MODEL_NAME", "a,,b", "separated by commas"),
        ("DGEMMA_HTTP_MAX_BODY_MIB", "0", "MiB"),
        ("DGEMMA_READY_TIMEOUT_S", "never", "seconds"),
        ("NIM_LOG_LEVEL", "loud", "debug, info"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        FrontSettings.load()
    assert str(raised.value).startswith(f"{variable}: got {value!r}: ")
    assert says in str(raised.value).partition("; expected: ")[2]


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_SERVER_PORT", "8004")
    assert FrontSettings.load().port == 8004
    monkeypatch.setenv("NIM_HTTP_API_PORT", "8005")
    monkeypatch.setenv("NIM_SERVED_MODEL_NAME", "")
    assert FrontSettings.load().port == 8005
    assert FrontSettings.load(port=8006, host=None).port == 8006
    assert FrontSettings.load().model_names == ["diffusion_gemma"]


def test_a_port_that_is_taken_is_named() -> None:
    with running(FrontSettings.load(host="127.0.0.1", port=0)) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match=f"HTTP port {port} of 127.0.0.1"):
            FrontServer(FrontSettings.load(host="127.0.0.1", port=port))


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with running(FrontSettings.load(host="127.0.0.1", port=0)) as server:
        with httpx2.Client(base_url=server.url) as http:
            took = [http.get("/v1/version").elapsed.total_seconds() for _ in range(20)]
        assert server.socket.proto == socket.IPPROTO_TCP
    assert min(took) < 0.03  # with Nagle's algorithm none takes less than 40 ms


def test_what_is_in_flight_is_finished_when_the_front_stops() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(fake: FakeTriton, tensors: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield response("block", "Hello")
        begun.set()
        assert go_on.wait(20)
        yield final()

    texts: list[str] = []
    with FakeTriton(slow) as fake:
        settings = FrontSettings.load(triton_url=fake.url, host="127.0.0.1", port=0)

        def ask(url: str) -> None:
            body = httpx2.post(url + COMPLETIONS, json={"prompt": "p"}, timeout=20).json()
            texts.append(body["choices"][0]["text"])

        with running(settings) as server:
            client = threading.Thread(target=ask, args=[server.url])
            client.start()
            assert begun.wait(20)
            server.stop()
            threading.Timer(0.3, go_on.set).start()
        client.join()
    assert texts == ["Hello"]


def test_the_command_serves_until_a_signal(tmp_path: Path) -> None:
    with FakeTriton(answer) as fake:
        environment = {**os.environ, "DGEMMA_HOST": "127.0.0.1", "NIM_SERVED_MODEL_NAME": "mine"}
        process = subprocess.Popen(
            [str(DGEMMA), "front", "--url", fake.url, "--port", "0"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "log").open("w"),
            text=True,
        )
        assert process.stdout is not None
        try:
            url = process.stdout.readline().partition("listening: ")[2].partition(",")[0]
            with httpx2.Client(base_url=url, timeout=20) as http:
                body = http.post(COMPLETIONS, json={"prompt": "p"}).json()
            assert (body["model"], body["choices"][0]["text"]) == ("mine", "Hello, world")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.run(
        [str(DGEMMA), "front", "--url", "nowhere"], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: DGEMMA_TRITON_URL: got 'nowhere'")
