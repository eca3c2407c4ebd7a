"""What the surface's acceptance takes for a failure: it has to see one where there is one."""

from __future__ import annotations

import json

import grpc
import pytest

from tests.accept import fuzz_grpc, fuzz_http, grpc_exchange, http_exchange
from tests.accept.contract import mistakes
from tests.accept.fuzz import growth

HTTP, GRPC = http_exchange.Asked(b"x"), grpc_exchange.Asked(b"x")
OK = grpc.StatusCode.OK


def answered(status: int, code: str | None = None, message: str = "m") -> http_exchange.Answered:
    error = {"error": {"message": message, "type": "t", "param": None, "code": code}}
    return http_exchange.Answered(status, True, bytearray(json.dumps(error).encode()))


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (answered(400), ""),
        (answered(503, "unavailable"), ""),
        (answered(500), "500 m"),
        (answered(503), "503 m"),
        (answered(400, message=""), "400 without a message"),
        (http_exchange.Answered(404, True, bytearray(b"nothing")), "404 without an error object"),
        (http_exchange.Answered(200), "200, broken off"),
        (http_exchange.Answered(), "closed without an answer"),
    ],
)
def test_what_may_not_come_over_http(answer: http_exchange.Answered, wrong: str) -> None:
    assert answer.wrong(HTTP) == wrong


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (grpc_exchange.Answered(OK, "", None, 1), ""),
        (grpc_exchange.Answered(OK, "", "[INVALID_ARGUMENT] seed: got -1", 1), ""),
        (grpc_exchange.Answered(OK, "", "unexpected inference input 'x'", 1), ""),
        (grpc_exchange.Answered(OK, "", "[INTERNAL] KeyError", 1), "[INTERNAL] KeyError"),
        (grpc_exchange.Answered(OK, "", None, 0), "ended without a response"),
        (grpc_exchange.Answered(grpc.StatusCode.UNAVAILABLE, "gone", None, 0), "UNAVAILABLE gone"),
    ],
)
def test_what_may_not_come_over_grpc(answer: grpc_exchange.Answered, wrong: str) -> None:
    assert answer.wrong(GRPC) == wrong


@pytest.mark.parametrize("made", [fuzz_http.request, fuzz_grpc.request])
def test_requests_can_be_made_again(made: object) -> None:
    assert callable(made)
    some = [made(1, number) for number in range(200)]
    assert some == [made(1, number) for number in range(200)]
    assert len({asked.content for asked in some}) > 150


def test_growth_is_seen() -> None:
    before, after = {"stub": 100, "front": 100}, {"stub": 106, "front": 104}
    assert [line.holds for line in growth(before, before, after)] == [False, True]


def test_a_schema_knows_every_field() -> None:
    model = {"id": "m", "object": "model", "created": 0, "owned_by": "d", "root": "m"}
    assert not mistakes("models", {"object": "list", "data": [model]})
    for wrong in ({**model, "more": 1}, {**model, "created": "0"}, {"id": "m"}):
        assert mistakes("models", {"object": "list", "data": [wrong]})
