"""The container's health check against servers that are ready, not ready, absent or secured."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dgemma import health_check
from tests.dgemma import tls


@contextmanager
def answering(status: int, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server's port; it answers with that status, and 404 everywhere but where one asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v1/health/ready" else 404)
            self.end_headers()
            self.wfile.write(b"why")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("variable", ["NIM_HTTP_API_PORT", "NIM_SERVER_PORT"])
def test_a_service_that_is_ready(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as port:
        monkeypatch.setenv(variable, str(port))
        assert health_check.trouble() is None


def test_the_first_name_of_the_port_wins_and_an_empty_one_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(200) as port, answering(503) as other:
        monkeypatch.setenv("NIM_SERVER_PORT", str(port))
        monkeypatch.setenv("NIM_HTTP_API_PORT", "")
        assert health_check.trouble() is None
        monkeypatch.setenv("NIM_HTTP_API_PORT", str(other))
        assert health_check.trouble() is not None


def test_a_service_that_is_not_ready_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(503) as port:
        monkeypatch.setenv("NIM_HTTP_API_PORT", str(port))
        assert health_check.trouble() == "/v1/health/ready answered 503: why"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as port:
        pass
    monkeypatch.setenv("NIM_HTTP_API_PORT", str(port))
    assert "refused" in str(health_check.trouble())


def test_over_tls_the_certificate_s_name_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "both.pem").write_bytes(tls.CERTIFICATE + tls.KEY)
    context.load_cert_chain(tmp_path / "both.pem")
    monkeypatch.setenv("NIM_SSL_MODE", "TLS")
    with answering(200, context) as port:
        monkeypatch.setenv("NIM_HTTP_API_PORT", str(port))
        assert health_check.trouble() is None


def test_with_client_certificates_it_sees_only_whether_somebody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NIM_SSL_MODE", "mtls")
    with answering(503) as port:
        monkeypatch.setenv("NIM_HTTP_API_PORT", str(port))
        assert health_check.trouble() is None
    assert health_check.trouble() is not None


def test_without_http_it_sees_whether_grpc_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGEMMA_HTTP", "0")
    with answering(503) as port:
        monkeypatch.setenv("NIM_TRITON_GRPC_PORT", str(port))
        assert health_check.trouble() is None
    assert health_check.trouble() is not None


def test_every_address_is_asked_on_the_loopback_and_another_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for host, asked in (("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.9", "127.0.0.9")):
        monkeypatch.setenv("DGEMMA_HOST", host)
        assert health_check._host() == asked


def test_as_the_command_it_exits_with_0_or_with_1_and_the_reason() -> None:
    with answering(503) as port:
        # Isolated: nothing but the standard library and this file.
        process = subprocess.run(
            [sys.executable, "-I", "-S", health_check.__file__],
            env={"NIM_HTTP_API_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (process.returncode, process.stderr) == (1, "/v1/health/ready answered 503: why\n")
