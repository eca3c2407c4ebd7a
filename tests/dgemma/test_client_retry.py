"""The client's own retries: what is asked again, by which connection, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from dgemma import client as module
from dgemma.client import Client, RequestRejected, ServerFailure, Unavailable
from tests.dgemma.fake_triton import FakeTriton, Script, answer, failure, response

BUSY = "the service is stopping; retry after 0.1 s"


def fails_first(times: int, script: Script) -> Script:
    """UNAVAILABLE so many times, and then what `script` plays."""
    left = iter(range(times))

    def played(fake: FakeTriton, asked: dict[str, Any], context: Any) -> Iterator[Any]:
        if next(left, None) is not None:
            yield from failure(grpc.StatusCode.UNAVAILABLE, BUSY)(fake, asked, context)
            return
        yield from script(fake, asked, context)

    return played


def test_without_leave_nothing_is_asked_twice() -> None:
    with FakeTriton(fails_first(1, answer)) as fake, Client(fake.url) as client:
        with pytest.raises(Unavailable) as caught:
            client.generate("x")
        assert caught.value.retry_after_s == 0.1 and len(fake.requests) == 1
        assert client.generate("x").text


def test_it_is_asked_again_by_a_new_connection_until_there_is_an_answer() -> None:
    with FakeTriton(fails_first(3, answer)) as fake, Client(fake.url, retry_for_s=20) as client:
        assert client.generate("x", seed=7).text
        assert len(fake.requests) == 4 and len(fake.peers) == 4
        assert len({bytes(r.SerializeToString()) for r in fake.requests}) == 1
        assert client.generate("x").text
        assert len(fake.peers) == 4, "a connection that is well is kept"


def test_the_time_for_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    with FakeTriton(fails_first(99, answer)) as fake, Client(fake.url, retry_for_s=0.8) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            client.generate("x")
        assert time.monotonic() - began < 0.8
        # After 0.1, 0.2 and 0.4 s; another 0.8 s would be too late.
        assert len(fake.requests) == 4


def test_a_request_s_own_time_is_not_exceeded_by_it() -> None:
    with FakeTriton(fails_first(99, answer)) as fake, Client(fake.url, retry_for_s=99) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            client.generate("x", timeout_s=0.5)
        assert time.monotonic() - began < 0.5 and len(fake.requests) > 1


def test_where_part_of_an_answer_has_come_it_is_not_asked_again() -> None:
    def breaks(*_: object) -> Iterator[Any]:
        yield response("block", "a")
        yield from failure(grpc.StatusCode.UNAVAILABLE, BUSY)(*_)  # type: ignore[arg-type]

    with FakeTriton(breaks) as fake, Client(fake.url, retry_for_s=20) as client:
        updates = client.stream("x")
        assert next(updates).text == "a"
        with pytest.raises(Unavailable):
            next(updates)
        assert len(fake.requests) == 1


def test_other_errors_are_not_asked_again() -> None:
    with (
        FakeTriton(failure(grpc.StatusCode.INTERNAL, "a pass failed")) as fake,
        Client(fake.url, retry_for_s=20) as client,
    ):
        with pytest.raises(ServerFailure):
            client.generate("x")
        assert len(fake.requests) == 1


def test_a_server_that_comes_later_is_found() -> None:
    with FakeTriton(answer) as fake:
        port = int(fake.url.rpartition(":")[2])
    with Client(f"127.0.0.1:{port}", retry_for_s=60) as client:
        with pytest.raises(Unavailable) as caught:
            Client(f"127.0.0.1:{port}").generate("x")
        assert caught.value.retry_after_s == 1.0
        with FakeTriton(answer, port=port):
            assert client.generate("x").text


def test_what_runs_on_a_connection_goes_on_when_another_takes_its_place() -> None:
    """One thread is refused while another's answer is still coming over the same channel."""
    asked: list[str] = []

    def script(fake: FakeTriton, inputs: dict[str, Any], context: Any) -> Iterator[Any]:
        asked.append(inputs["text_input"])
        if inputs["text_input"] == "refused" and asked.count("refused") == 1:
            yield from failure(grpc.StatusCode.UNAVAILABLE, BUSY)(fake, inputs, context)
            return
        yield from answer(fake, inputs, context)

    with FakeTriton(script) as fake, Client(fake.url, retry_for_s=20) as client:
        running = client.stream("long")
        first = next(running)
        assert client.generate("refused").text
        rest = list(running)
        assert first.kind == "block" and rest[-1].kind == "final" and len(fake.peers) == 2


def test_the_time_has_to_be_one() -> None:
    with pytest.raises(RequestRejected, match="retry_for_s: must be 0 or more"):
        Client("localhost:1", retry_for_s=-1)
