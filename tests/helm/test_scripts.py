"""The scripts of `helm test`, as the processes that they are, against services of all kinds."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.dgemma import tls
from tests.dgemma.fake_triton import FakeTriton, final
from tests.helm.sdk import CHART

SCRIPTS = CHART / "files" / "tests"
INFO = """
dgemma_engine_info{precision="PRECISION",verification="measured",simulated="false"} 1
dgemma_profile_info{profile="p",id="abc",revision="",fell_back="FELL",wanted=""} 1.000000
"""
CHAT = [
    {"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "42 43"}, "finish_reason": "stop"}]},
]


class Pages(dict[str, tuple[int, str]]):
    """Status and body by path, as a healthy service answers."""

    def __init__(self, precision: str = "fp8", fell_back: str = "false") -> None:
        info = INFO.replace("PRECISION", precision).replace("FELL", fell_back)
        for what in ("live", "ready"):
            self[f"/v1/health/{what}"] = 200, json.dumps({"status": what, "message": "well"})
        self["/v1/metadata"] = 200, json.dumps({"selectedModelProfileId": "abc"})
        self["/v1/metrics"] = 200, info + "".join(f"{name} 0\n" for name in metrics())
        events = [*map(json.dumps, CHAT), "[DONE]"]
        self["/v1/chat/completions"] = 200, "".join(f"data: {event}\n\n" for event in events)


def metrics() -> list[str]:
    text = (SCRIPTS / "metrics.py").read_text()
    return [line.strip(' ",') for line in text.split("EXPECTED = (")[1].split(")")[0].split("\n")]


@contextmanager
def serving(pages: Pages, directory: Path, mode: str = "disabled") -> Iterator[dict[str, str]]:
    """What a script is told of a service with these pages; keys that came are in `keys`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, body = pages[self.path]
            if self.headers.get("Authorization") not in (None, "Bearer key"):
                code = 401
            self.send_response(code)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

    certificate, key = directory / "tls.crt", directory / "tls.key"
    certificate.write_bytes(tls.CERTIFICATE)
    key.write_bytes(tls.KEY)
    told = {"TEST_MODEL": "m", "TEST_PRECISION": "fp8"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if mode != "disabled":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        told["TEST_CA"] = str(certificate)
        if mode == "mtls":
            context.load_verify_locations(certificate)
            context.verify_mode = ssl.CERT_REQUIRED
            told |= {"TEST_CERT": str(certificate), "TEST_KEY": str(key)}
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if mode == "disabled" else "https"
    told["TEST_HTTP"] = f"{scheme}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(name: str, told: dict[str, str]) -> tuple[int, str]:
    """Exit code and what it said."""
    here = {key: value for key, value in os.environ.items() if not key.startswith("TEST_")}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py")],
        env={**here, **told},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["disabled", "tls", "mtls"])
@pytest.mark.parametrize("name", ["health", "chat", "metrics", "served"])
def test_a_healthy_service_passes(name: str, mode: str, tmp_path: Path) -> None:
    with serving(Pages(), tmp_path, mode) as told:
        code, said = run(name, {**told, "TEST_API_KEY": "key"})
    assert code == 0, said


@pytest.mark.parametrize(
    ("name", "path", "page", "why"),
    [
        (
            "health",
            "/v1/health/ready",
            (503, "starting"),
            "/v1/health/ready answered 503: starting",
        ),
        ("health", "/v1/health/live", (200, '{"status": "odd"}'), "/v1/health/live: {'status'"),
        ("chat", "/v1/chat/completions", (429, "no room"), "429: no room"),
        ("chat", "/v1/chat/completions", (200, "data: [DONE]\n"), "the stream ended with ''"),
        ("chat", "/v1/chat/completions", (200, 'data: {"error": "odd"}\n'), "odd"),
        ("metrics", "/v1/metrics", (200, "a 1\n"), "/v1/metrics lacks num_requests_running"),
        ("served", "/v1/metrics", (200, "a 1\n"), "has no dgemma_engine_info of 1"),
        ("served", "/v1/metadata", (200, '{"selectedModelProfileId": "b"}'), "'b', the metrics"),
    ],
)
def test_what_is_wrong_fails_and_is_said(
    name: str, path: str, page: tuple[int, str], why: str, tmp_path: Path
) -> None:
    pages = Pages()
    pages[path] = page
    with serving(pages, tmp_path) as told:
        code, said = run(name, told)
    assert code == 1
    assert "failed: " in said
    assert why in said


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        (Pages(precision="int4"), "precision int4 is served, fp8 was asked for"),
        (Pages(fell_back="true"), "p is served in place of a better one"),
    ],
)
def test_another_profile_than_the_expected_one_fails(
    pages: Pages, why: str, tmp_path: Path
) -> None:
    with serving(pages, tmp_path) as told:
        code, said = run("served", told)
    assert code == 1
    assert why in said


def test_a_certificate_of_others_is_not_trusted(tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(tls.UNRELATED)
    with serving(Pages(), tmp_path, "tls") as told:
        code, said = run("health", {**told, "TEST_CA": str(other)})
    assert code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_nobody_there_fails(tmp_path: Path) -> None:
    with serving(Pages(), tmp_path) as told:
        pass
    code, said = run("health", told)
    assert code == 1
    assert "refused" in said


@pytest.mark.parametrize("secure", [False, True])
def test_a_generation_over_grpc_passes(secure: bool, tmp_path: Path) -> None:
    certificate = tmp_path / "ca.crt"
    certificate.write_bytes(tls.CERTIFICATE)

    def script(*_: Any) -> Iterator[Any]:
        yield final("42 43")

    with FakeTriton(script, (tls.KEY, tls.CERTIFICATE) if secure else None) as triton:
        told = {"TEST_GRPC": triton.url, "TEST_API_KEY": "key"}
        code, said = run("generation", told | ({"TEST_CA": str(certificate)} if secure else {}))
        assert (code, said) == (0, "30 tokens, 9 passes\n")
        assert triton.metadata[0]["authorization"] == "Bearer key"
    code, said = run("generation", told)
    assert code == 1
    assert said.startswith(f"failed: {triton.url}: ")
