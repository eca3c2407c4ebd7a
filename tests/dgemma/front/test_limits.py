"""Limits of size and time, and what becomes of a request whose client has gone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx2
import pytest

from dgemma.front.server import FrontServer, running
from dgemma.front.settings import FrontSettings
from tests.dgemma.fake_triton import FakeTriton, answer, one_block_then_wait, response
from tests.dgemma.front.conftest import Stage
from tests.dgemma.front.replies import CHAT, COMPLETIONS, USER, error_of

PROMPT = {"prompt": "p"}
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def strict() -> Iterator[tuple[FakeTriton, FrontServer]]:
    """A front with little patience, whose Triton gives one block and then nothing."""
    with FakeTriton(one_block_then_wait) as fake:
        settings = FrontSettings.load(
            triton_url=fake.url,
            host="127.0.0.1",
            port=0,
            max_body_mib=0.001,
            read_timeout_s=0.3,
            write_timeout_s=0.3,
            timeout_s=0.5,
        )
        with running(settings) as server:
            yield fake, server


@pytest.fixture
def connection(strict: tuple[FakeTriton, FrontServer]) -> Iterator[socket.socket]:
    address = urlsplit(strict[1].url)
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as opened:
        yield opened


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def test_a_large_body_is_refused_before_it_has_come(connection: socket.socket) -> None:
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unknown_length_is_refused_where_it_grows_too_large(
    strict: tuple[FakeTriton, FrontServer],
) -> None:
    pieces = (b"x" * 100 for _ in range(50))
    with httpx2.Client(base_url=strict[1].url) as http:
        assert http.post(COMPLETIONS, content=pieces).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(connection: socket.socket) -> None:
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
    assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_headers_that_do_not_come_are_not_waited_for(
    connection: socket.socket, begun: bytes
) -> None:
    connection.sendall(begun)
    began = time.monotonic()
    with suppress(ConnectionResetError):
        assert until_closed(connection) == b""
    assert time.monotonic() - began < PATIENCE_S / 2


def test_an_answer_that_does_not_come_is_not_waited_for(
    strict: tuple[FakeTriton, FrontServer],
) -> None:
    with httpx2.Client(base_url=strict[1].url) as http:
        answered = http.post(COMPLETIONS, json=PROMPT)
    assert answered.status_code == 504
    assert "0.5 s" in error_of(answered)["message"]


def test_a_client_that_does_not_read_is_let_go_and_its_request_cancelled() -> None:
    large = "x" * 100_000

    def endless(fake: FakeTriton, tensors: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        while context.is_active():
            yield response("block", large)

    with FakeTriton(endless) as fake:
        settings = FrontSettings.load(
            triton_url=fake.url, host="127.0.0.1", port=0, write_timeout_s=0.3
        )
        with running(settings) as server:
            address = urlsplit(server.url)
            body = json.dumps({**PROMPT, "stream": True}).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(head.encode() + body)
                assert fake.cancelled.wait(PATIENCE_S)


# Clients that go


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"), [(COMPLETIONS, PROMPT), (CHAT, {"messages": USER})], ids=["text", "chat"]
)
def test_a_client_that_goes_cancels_its_request(
    http: httpx2.Client, stage: Stage, path: str, prompt: dict[str, Any], stream: bool
) -> None:
    stage.play(one_block_then_wait)
    fields = {**prompt, "stream": stream}
    if stream:
        with http.stream("POST", path, json=fields) as answered:
            assert next(answered.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx2.ReadTimeout):
            http.post(path, json=fields, timeout=0.2)
    assert stage.fake.cancelled.wait(PATIENCE_S)


def test_a_client_that_goes_in_the_midst_of_its_body_is_no_failure(
    strict: tuple[FakeTriton, FrontServer], connection: socket.socket
) -> None:
    connection.sendall(b"POST /v1/infill HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
    connection.close()
    deadline = time.monotonic() + PATIENCE_S
    with httpx2.Client(base_url=strict[1].url) as http:
        while 'endpoint="/v1/infill"' not in (page := http.get("/v1/metrics").text):
            assert time.monotonic() < deadline
    assert 'endpoint="/v1/infill",status="499"' in page


def test_a_finished_stream_is_never_cancelled(http: httpx2.Client, stage: Stage) -> None:
    for _ in range(20):
        with http.stream("POST", COMPLETIONS, json={**PROMPT, "stream": True}) as answered:
            for line in answered.iter_lines():
                if '"stop"' in line:
                    break
    assert stage.fake.completed.wait(PATIENCE_S)
    assert not stage.fake.cancelled.is_set()
    assert stage.fake.script is answer
