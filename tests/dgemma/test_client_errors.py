from __future__ import annotations

import grpc
import pytest

from dgemma import client
from dgemma.client_errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerFailure,
    Unauthenticated,
    Unavailable,
    from_message,
    from_rpc_error,
    from_status,
)
from dgemma.errors import ResourceExhausted

URL = "host:8001"
OWN_CODES: dict[str, type[ClientError]] = {
    "INVALID_ARGUMENT": RequestRejected,
    "UNAUTHENTICATED": Unauthenticated,
    "UNAVAILABLE": Unavailable,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}


def error_of(code: str, details: str = "") -> ClientError:
    return from_status(code, details, url=URL, timeout_s=2.5)


@pytest.mark.parametrize("code", [status.name for status in grpc.StatusCode])
def test_every_status_of_grpc_is_one_of_the_errors_and_keeps_its_name(code: str) -> None:
    error = error_of(code, "why")
    assert type(error) is OWN_CODES.get(code, ServerFailure)
    assert error.code == code
    assert str(error) == error.message != ""


@pytest.mark.parametrize("code", [status.name for status in grpc.StatusCode])
def test_no_error_is_without_words(code: str) -> None:
    message = error_of(code).message
    assert URL in message or "2.5 s" in message


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_the_server_s_own_words_are_passed_on(code: str) -> None:
    assert error_of(code, "seed: must be an integer").message == "seed: must be an integer"


def test_a_missed_deadline_says_how_long_it_was_and_what_to_do() -> None:
    message = error_of("DEADLINE_EXCEEDED", "Deadline Exceeded").message
    assert "2.5 s" in message
    assert "fewer tokens or allow more time" in message


def test_a_deadline_that_the_service_was_told_is_explained_by_the_service() -> None:
    said = "sampling_parameters.deadline_s: 2 s from its arrival was the deadline; it has passed"
    assert error_of("DEADLINE_EXCEEDED", said).message == said


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ("failed to connect to all addresses; last error: x", "no server answers at host:8001"),
        ("DNS resolution failed for host:8001", "no server answers at host:8001"),
        ("errors resolving host", "no server answers at host:8001"),
        ("Socket closed", "the connection to host:8001 was lost"),
        ("recvmsg: Connection reset by peer", "the connection to host:8001 was lost"),
        ("Broken pipe", "the connection to host:8001 was lost"),
        ("Cancelling all calls", "the connection to host:8001 was lost"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_from_a_lost_connection(
    details: str, says: str
) -> None:
    message = error_of("UNAVAILABLE", details).message
    assert message.startswith(says)
    assert details in message


def test_a_service_that_says_it_is_unavailable_speaks_for_itself() -> None:
    said = "the service is stopping; send the request to another one, or later"
    assert error_of("UNAVAILABLE", said).message == said


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect to all addresses; last error: Ssl handshake failed: SSL_ERROR_SSL",
        "failed to connect to all addresses; last error: Handshake read failed",
    ],
)
def test_a_failed_handshake_is_not_a_missing_server(details: str) -> None:
    message = error_of("UNAVAILABLE", details).message
    assert message.startswith("no TLS connection to host:8001; is it a TLS endpoint")
    assert "--tls-ca" in message and details in message


@pytest.mark.parametrize(
    "said",
    [
        "Request for unknown model: 'diffusion_gemma' has no available versions",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
    ],
)
def test_triton_s_own_words_while_it_starts_or_stops_are_unavailable(said: str) -> None:
    error = from_message(said, url=URL, timeout_s=1.0)
    assert isinstance(error, Unavailable) and error.retry_after_s == 1.0
    assert error.message.startswith("the model is not loaded") and said in error.message


def test_an_overloaded_server_says_when_to_come_back_in_words_and_in_seconds() -> None:
    said = str(ResourceExhausted("the queue is full", 2.5))
    error = from_message(f"[RESOURCE_EXHAUSTED] {said}", url=URL, timeout_s=1.0)
    assert isinstance(error, Overloaded)
    assert error.message == "the queue is full; retry after 2.5 s"
    assert error.retry_after_s == 2.5
    assert Overloaded("no room").retry_after_s is None


class EndedCall(grpc.RpcError):
    """A call that ended with a status and maybe details."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


@pytest.mark.parametrize("details", ["no room", "", None])
def test_an_rpc_error_is_read_with_and_without_details(details: str | None) -> None:
    ended = EndedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    error = from_rpc_error(ended, url=URL, timeout_s=1.0)
    assert type(error) is Overloaded
    assert error.message == (details or f"the server at {URL} ended the request without saying why")


@pytest.mark.parametrize("code", [status.name for status in grpc.StatusCode])
def test_a_text_in_a_stream_begins_with_its_status(code: str) -> None:
    error = from_message(f"[{code}] seed: got [1]\nallowed: 0", url=URL, timeout_s=2.5)
    expected = error_of(code, "seed: got [1]\nallowed: 0")
    assert (type(error), error.code, error.message) == (
        type(expected),
        code,
        expected.message,
    )


@pytest.mark.parametrize(
    "text", ["no such model", "[request id: 7] unexpected shape", "see [INTERNAL] x", "[INTERNAL]x"]
)
def test_a_text_without_status_is_triton_s_own_and_kept_as_it_is(text: str) -> None:
    error = from_message(text, url=URL, timeout_s=2.5)
    assert (type(error), error.code, error.message) == (ServerFailure, "UNKNOWN", text)


def test_an_error_has_the_code_of_its_kind_unless_told_otherwise() -> None:
    assert [kind("x").code for kind in (ClientError, *OWN_CODES.values(), ServerFailure)] == [
        "UNKNOWN",
        *OWN_CODES,
        "INTERNAL",
    ]
    assert ServerFailure("x", "ABORTED").code == "ABORTED"


def test_one_except_clause_catches_them_all_and_the_client_offers_each() -> None:
    for kind in (*OWN_CODES.values(), ServerFailure):
        assert issubclass(kind, client.ClientError)
        assert getattr(client, kind.__name__) is kind
