from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from dgemma.client import (
    Cancelled,
    Client,
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerFailure,
    Unavailable,
)
from tests.dgemma.fake_triton import (
    FakeTriton,
    Script,
    answer,
    failure,
    final,
    one_block_then_wait,
    refusal,
    response,
)

TIMEOUT_S = 20.0  # of what ends by itself; only a failing test waits for it


def plays(*messages: Any) -> Script:
    """A server that sends these messages and ends the stream."""

    def script(*_: object) -> Iterator[Any]:
        yield from messages

    return script


# Errors of the server and of the way to it


def test_no_complete_answer_in_time_is_an_error_and_cancels_the_request() -> None:
    with FakeTriton(one_block_then_wait) as fake, Client(fake.url) as opened:
        updates = opened.stream("x", timeout_s=2.0)
        assert next(updates).text == "Hello"
        with pytest.raises(DeadlineExceeded, match=r"within 2 s .*allow more time") as caught:
            next(updates)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert fake.cancelled.wait(TIMEOUT_S)


def test_a_refusal_before_the_deadline_is_not_a_missed_deadline() -> None:
    with (
        FakeTriton(failure(grpc.StatusCode.UNAVAILABLE, "busy")) as fake,
        Client(fake.url) as opened,
        pytest.raises(Unavailable, match=r"^busy$"),
    ):
        opened.generate("x", timeout_s=TIMEOUT_S)


def aborts(code: grpc.StatusCode, details: str, *, after: tuple[Any, ...] = ()) -> Script:
    """Ends the call with a status of gRPC, as servers and what stands before them may do."""

    def script(_: FakeTriton, __: object, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from after
        context.abort(code, details)

    return script


@pytest.mark.parametrize("after", [(), (response("block", "a"),)])
@pytest.mark.parametrize("how", [failure, aborts])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", RequestRejected),
        ("UNAVAILABLE", Unavailable),
        ("RESOURCE_EXHAUSTED", Overloaded),
        ("CANCELLED", Cancelled),
        ("INTERNAL", ServerFailure),
        ("NOT_FOUND", ServerFailure),
        ("UNIMPLEMENTED", ServerFailure),
    ],
)
def test_each_status_of_the_server_is_a_typed_error_with_its_words(
    status: str, kind: type[ClientError], how: Callable[..., Script], after: tuple[Any, ...]
) -> None:
    script = how(grpc.StatusCode[status], f"why it is {status}", after=after)
    with (
        FakeTriton(script) as fake,
        Client(fake.url) as opened,
        pytest.raises(ClientError) as caught,
    ):
        opened.generate("x", timeout_s=TIMEOUT_S)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message) == (status, f"why it is {status}")


@pytest.mark.parametrize("how", [failure, aborts])
def test_an_error_behind_the_final_response_does_not_cost_the_answer(
    how: Callable[..., Script],
) -> None:
    script = how(grpc.StatusCode.INTERNAL, "too late", after=(final("a"),))
    with FakeTriton(script) as fake, Client(fake.url) as opened:
        assert opened.generate("x", timeout_s=TIMEOUT_S).text == "a"


def test_a_stream_with_an_error_in_it_is_left_to_the_server_to_end() -> None:
    """To cancel it then would leave the model unable to unload."""
    may_end = threading.Event()

    def slow_end(*_: object) -> Iterator[Any]:
        yield refusal("[INVALID_ARGUMENT] no")
        may_end.wait(TIMEOUT_S)

    with FakeTriton(slow_end) as fake, Client(fake.url) as opened:
        threading.Timer(0.2, may_end.set).start()
        with pytest.raises(RequestRejected, match=r"^no$"):
            opened.generate("x", timeout_s=TIMEOUT_S)
        assert may_end.is_set()
        assert fake.completed.wait(TIMEOUT_S)
        assert not fake.cancelled.is_set()


def test_triton_is_not_asked_for_statuses_which_some_of_its_versions_die_of() -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        opened.generate("x", timeout_s=TIMEOUT_S)
        assert "triton_grpc_error" not in fake.metadata[0]


def test_an_error_keeps_what_came_before_it() -> None:
    script = failure(grpc.StatusCode.INTERNAL, "x", after=(response("block", "kept"),))
    with FakeTriton(script) as fake, Client(fake.url) as opened:
        updates = opened.stream("x", timeout_s=TIMEOUT_S)
        assert next(updates).text == "kept"
        with pytest.raises(ServerFailure):
            next(updates)


def test_what_triton_refuses_without_a_status_is_a_server_failure() -> None:
    with (
        FakeTriton(plays(refusal("no such model"))) as fake,
        Client(fake.url) as opened,
        pytest.raises(ServerFailure, match=r"^no such model$") as caught,
    ):
        opened.generate("x", timeout_s=TIMEOUT_S)
    assert caught.value.code == "UNKNOWN"


def test_a_response_outside_the_contract_is_a_server_failure() -> None:
    broken = response("block", "a")
    del broken.infer_response.raw_output_contents[:]
    with (
        FakeTriton(plays(broken, final())) as fake,
        Client(fake.url) as opened,
        pytest.raises(ServerFailure, match="does not keep to the contract"),
    ):
        opened.generate("x", timeout_s=TIMEOUT_S)


def test_no_server_is_unavailable_and_says_where_and_how_to_start_one() -> None:
    with FakeTriton(answer) as gone:
        url = gone.url
    with Client(url) as opened, pytest.raises(Unavailable, match=f"at {url}; start one with"):
        opened.generate("x", timeout_s=TIMEOUT_S)


def test_a_server_that_stops_in_the_middle_is_unavailable() -> None:
    released = threading.Event()

    def hanging(*_: object) -> Iterator[Any]:
        yield response("block", "Hello")
        released.wait(TIMEOUT_S)

    fake = FakeTriton(hanging)
    with Client(fake.url) as opened:
        updates = opened.stream("x", timeout_s=TIMEOUT_S)
        try:
            with fake:
                assert next(updates).text == "Hello"
            with pytest.raises(Unavailable, match=f"connection to {fake.url} was lost"):
                next(updates)
        finally:
            released.set()


# What is refused before anything is sent


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost:8001", "a b:1", "h:x", "h:"])
def test_an_url_that_is_not_host_and_port_is_rejected(url: str) -> None:
    with pytest.raises(RequestRejected, match=r"^url: must be HOST:PORT"):
        Client(url)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 86_401.0])
def test_every_request_has_a_deadline_that_makes_sense(timeout_s: float) -> None:
    with Client("localhost:1") as opened, pytest.raises(RequestRejected, match=r"^timeout_s: must"):
        opened.stream("x", timeout_s=timeout_s)


def test_a_request_that_cannot_be_sent_is_rejected_at_the_call() -> None:
    with Client("localhost:1") as opened, pytest.raises(RequestRejected, match=r"^prompt: "):
        opened.stream("x", input_ids=[1])
