"""Statuses, headers and limits, whatever the endpoint."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import grpc
import httpx2
import pytest

from dgemma.front.server import running
from dgemma.front.settings import FrontSettings
from dgemma.supervisor import sign
from tests.dgemma.fake_triton import (
    FakeTriton,
    answer,
    end_marker,
    failure,
    one_block_then_wait,
    refusal,
    response,
)
from tests.dgemma.front.conftest import Stage
from tests.dgemma.front.replies import CHAT, COMPLETIONS, USER, error_of, saying

PROMPT = {"prompt": "p"}


@pytest.mark.parametrize(
    ("code", "details", "status", "kind"),
    [
        ("INVALID_ARGUMENT", "it is wrong", 400, "invalid_request_error"),
        ("UNAUTHENTICATED", "who are you?", 401, "authentication_error"),
        ("RESOURCE_EXHAUSTED", "full; retry after 3.2 s", 429, "rate_limit_error"),
        ("DEADLINE_EXCEEDED", "deadline_s: too late", 504, "server_error"),
        ("UNAVAILABLE", "the service is stopping", 503, "server_error"),
        ("INTERNAL", "a pass failed", 500, "server_error"),
    ],
)
def test_the_service_s_status_decides_the_http_status(
    http: httpx2.Client, stage: Stage, code: str, details: str, status: int, kind: str
) -> None:
    stage.play(failure(grpc.StatusCode[code], details))
    answered = http.post(COMPLETIONS, json=PROMPT)
    assert answered.status_code == status
    error = error_of(answered)
    assert error["type"] == kind
    assert details in error["message"]


@pytest.mark.parametrize(
    ("details", "seconds"),
    [("full; retry after 3.2 s", "4"), ("full; retry after 0.1 s", "1"), ("full", "1")],
)
def test_429_says_when_to_come_again(
    http: httpx2.Client, stage: Stage, details: str, seconds: str
) -> None:
    stage.play(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
    assert http.post(CHAT, json={"messages": USER}).headers["retry-after"] == seconds


def test_a_model_that_is_not_loaded_is_unavailable(http: httpx2.Client, stage: Stage) -> None:
    said = "Request for unknown model: 'diffusion_gemma' has no available versions"
    stage.play(lambda *_: iter([refusal(said)]))
    assert http.post(COMPLETIONS, json=PROMPT).status_code == 503


def test_an_answer_that_the_service_cut_off_is_none(http: httpx2.Client, stage: Stage) -> None:
    stage.play(saying("Hel", finish_reason="cancelled"))
    assert http.post(COMPLETIONS, json=PROMPT).status_code == 503


def test_a_stream_without_an_end_is_a_failure(http: httpx2.Client, stage: Stage) -> None:
    stage.play(lambda *_: iter([response("block", "x"), end_marker()]))
    assert http.post(COMPLETIONS, json=PROMPT).status_code == 500


def test_the_key_goes_on_as_it_came(http: httpx2.Client, stage: Stage) -> None:
    http.post(COMPLETIONS, json=PROMPT, headers={"Authorization": "Bearer sk-1"})
    http.post(COMPLETIONS, json=PROMPT)
    assert [m.get("authorization") for m in stage.fake.metadata] == ["Bearer sk-1", None]
    assert not any("triton_grpc_error" in metadata for metadata in stage.fake.metadata)


def test_a_key_that_no_metadata_can_carry_is_refused(http: httpx2.Client, stage: Stage) -> None:
    headers = [(b"authorization", "Bearer schlüssel".encode())]
    assert http.post(COMPLETIONS, json=PROMPT, headers=headers).status_code == 401
    assert stage.fake.requests == []


@pytest.mark.parametrize("asked", ["my-id.1", None, "half a line", "x" * 129])
def test_one_id_goes_all_the_way(http: httpx2.Client, stage: Stage, asked: str | None) -> None:
    headers = {} if asked is None else {"X-Request-Id": asked}
    answered = http.post(COMPLETIONS, json=PROMPT, headers=headers)
    given = answered.headers["x-request-id"]
    assert given == asked if asked == "my-id.1" else len(given) == 32
    assert stage.fake.requests[0].id == given
    assert answered.json()["id"] == f"cmpl-{given}"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the front and its server have logged."""
    records = list(caplog.records)
    return [r.getMessage() for r in records if r.name.startswith(("dgemma", "uvicorn"))]


def test_neither_prompts_nor_keys_are_logged(
    http: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Authorization": "Bearer canary-key"}
    with caplog.at_level(logging.DEBUG):
        http.post(COMPLETIONS, json={"prompt": "canary-prompt"}, headers=headers)
        http.post(COMPLETIONS, json={"prompt": "canary-prompt", "n": 2}, headers=headers)
        deadline = time.monotonic() + 20  # a line is written behind its response
        while len(lines := [m for m in messages(caplog) if m.startswith("request ")]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    ours = messages(caplog)
    [_, line] = [json.loads(m.removeprefix("request ")) for m in lines]
    assert (line["endpoint"], line["status"]) == (COMPLETIONS, 400)
    assert "canary" not in "".join(ours)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "send a JSON object"),
        (b'{"prompt": NaN}', "NaN"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": "\\ud800"}', "not valid Unicode"),
        (b'{"prompt": "p", "\\ud800": 1}', "unknown field"),
        (b'{"prompt": "p", "model": "\\ud800"}', "there is no model"),
    ],
)
def test_bodies_that_are_none_are_refused(http: httpx2.Client, content: bytes, says: str) -> None:
    answered = http.post(COMPLETIONS, content=content)
    assert answered.status_code in (400, 404)
    assert says in error_of(answered)["message"]


def test_paths_and_methods_that_do_not_exist(http: httpx2.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", COMPLETIONS, 405),
        ("POST", "/v1/models", 405),
    ):
        answered = http.request(method, path)
        assert answered.status_code == status
        assert path in error_of(answered)["message"]


def test_a_triton_that_comes_again_is_found_at_once() -> None:
    with FakeTriton(answer) as fake:
        url = fake.url
    settings = FrontSettings.load(
        triton_url=url, host="127.0.0.1", port=0, ready_cache_s=0.0, ready_timeout_s=1.0
    )
    with running(settings) as server, httpx2.Client(base_url=server.url) as http:

        def ready() -> bool:
            return http.get("/v1/health/ready").status_code == 200

        until = time.monotonic() + 3.0  # gRPC's own patience grows with every attempt
        while time.monotonic() < until:
            answered = http.post(COMPLETIONS, json=PROMPT)
            assert answered.status_code == 503
            assert url not in error_of(answered)["message"]
            assert not ready()
            time.sleep(0.2)
        with FakeTriton(answer, port=int(url.partition(":")[2])):
            deadline = time.monotonic() + 1.2
            while not ready():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert http.post(COMPLETIONS, json=PROMPT).status_code == 200


def test_a_supervised_front_is_ready_once_its_requests_are_sent_on(tmp_path: Path) -> None:
    with FakeTriton(answer) as fake:
        url = fake.url
    settings = FrontSettings.load(triton_url=url, host="127.0.0.1", port=0, supervised=tmp_path)
    with running(settings) as server, httpx2.Client(base_url=server.url) as http:

        def ready() -> bool:
            sign.give(tmp_path / sign.STATUS)
            return http.get("/v1/health/ready").status_code == 200

        assert http.post(COMPLETIONS, json=PROMPT).status_code == 503
        assert not ready()
        with FakeTriton(answer, port=int(url.partition(":")[2])):
            deadline = time.monotonic() + 10
            while not ready():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert http.post(COMPLETIONS, json=PROMPT).status_code == 200


def test_a_triton_that_dies_ends_the_answer_that_it_was_giving() -> None:
    with FakeTriton(one_block_then_wait) as fake:
        settings = FrontSettings.load(triton_url=fake.url, host="127.0.0.1", port=0)
        with running(settings) as server, httpx2.Client(base_url=server.url) as http:
            fields = {**PROMPT, "stream": True}
            with http.stream("POST", COMPLETIONS, json=fields) as answered:
                lines = answered.iter_lines()
                assert "Hello" in next(lines)
                fake.stop()
                rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "server_error"
