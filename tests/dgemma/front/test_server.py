"""Settings, start and end of the front, and its command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from typer.testing import CliRunner

from dgemma.cli import app
from dgemma.errors import ConfigurationError
from dgemma.front.server import FrontServer, running
from dgemma.front.settings import FrontSettings
from dgemma.log_lines import is_ours
from tests.dgemma import tls
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


def test_a_log_in_json_names_the_request_that_a_line_is_about(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with FakeTriton(answer) as fake:
        process = subprocess.Popen(
            [str(DGEMMA), "front", "--url", fake.url, "--port", "0"],
            env={**os.environ, "DGEMMA_HOST": "127.0.0.1", "NIM_JSONL_LOGGING": "1"},
            stdout=subprocess.DEVNULL,
            stderr=log.open("w"),
        )
        try:
            for _ in range(2000):
                if "listening: " in log.read_text() or process.poll() is not None:
                    break
                time.sleep(0.01)
            url = log.read_text().partition("listening: ")[2].partition(",")[0]
            headers = {"x-request-id": "of-a-client"}
            with httpx2.Client(base_url=url, timeout=20, headers=headers) as http:
                http.post(COMPLETIONS, json={"prompt": "p"}).raise_for_status()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
    lines = log.read_text().splitlines()
    assert all(is_ours(line) for line in lines), lines
    said = [json.loads(line) for line in lines]
    assert {line["source"] for line in said} == {"front"}
    assert [line for line in said if line.get("request_id") == "of-a-client"]


def test_the_command_says_what_is_wrong() -> None:
    result = CliRunner().invoke(app, ["front", "--url", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: DGEMMA_TRITON_URL: got 'nowhere'")


# TLS


@pytest.fixture
def pem(tmp_path: Path) -> dict[str, Path]:
    files = {"key": tls.KEY, "certificate": tls.CERTIFICATE, "unrelated": tls.UNRELATED}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in files}


def tls_settings(pem: dict[str, Path], mode: str, **changes: Any) -> FrontSettings:
    files = {"ssl_key": pem["key"], "ssl_certificate": pem["certificate"], **changes}
    return FrontSettings.load(host="127.0.0.1", port=0, ssl_mode=mode, **files)


def reached(server: FrontServer, pem: dict[str, Path], *, known: bool) -> bool:
    """Whether a client, with or without a certificate of its own, gets an answer."""
    trust = ssl.create_default_context(cafile=str(pem["certificate"]))
    if known:
        trust.load_cert_chain(pem["certificate"], pem["key"])
    url = server.url.replace("127.0.0.1", "localhost")
    try:
        return httpx2.get(f"{url}/v1/health/live", verify=trust).status_code == 200
    except httpx2.TransportError:
        return False


def test_tls(pem: dict[str, Path]) -> None:
    with running(tls_settings(pem, "TLS")) as server:
        assert server.url.startswith("https://")
        assert reached(server, pem, known=False)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(server.url.replace("https", "http") + "/v1/health/live")


def test_mutual_tls_asks_clients_for_a_certificate(pem: dict[str, Path]) -> None:
    settings = tls_settings(pem, "mtls", ssl_authorities=pem["certificate"])
    with running(settings) as server:
        assert reached(server, pem, known=True)
        assert not reached(server, pem, known=False)


@pytest.mark.parametrize(
    ("mode", "changes", "says"),
    [
        ("tls", {"ssl_key": None}, "NIM_SSL_KEY_PATH: not set, and NIM_SSL_MODE is tls"),
        ("mtls", {}, "NIM_SSL_CA_CERTS_PATH: not set, and NIM_SSL_MODE is mtls"),
        ("tls", {"ssl_certificate": "unrelated"}, "no key and certificates in PEM form"),
        ("tls", {"ssl_key": Path("/no/such/file")}, "NIM_SSL_KEY_PATH: got '/no/such/file'"),
        ("on", {}, "NIM_SSL_MODE: got 'on'"),
    ],
)
def test_tls_that_cannot_be_is_refused(
    pem: dict[str, Path], mode: str, changes: dict[str, Any], says: str
) -> None:
    files = {name: pem.get(str(file), file) for name, file in changes.items()}
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        FrontServer(tls_settings(pem, mode, **files))
