from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from dgemma import client
from dgemma.client import (
    Client,
    Generation,
    RequestRejected,
    ServerFailure,
    Unavailable,
    Update,
    gather,
)
from tests.dgemma import tls
from tests.dgemma.fake_triton import (
    USAGE,
    FakeTriton,
    Script,
    answer,
    end_marker,
    final,
    inputs,
    one_block_then_wait,
    response,
)

TIMEOUT_S = 20.0  # of what ends by itself; only a failing test waits for it


def plays(*messages: Any) -> Script:
    """A server that sends these messages and ends the stream."""

    def script(*_: object) -> Iterator[Any]:
        yield from messages

    return script


def kinds(updates: list[Update]) -> list[str]:
    return [update.kind for update in updates]


# Answers


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("none", ["final"]),
        ("block", ["block", "block", "final"]),
        ("draft", ["draft", "draft", "block", "draft", "draft", "block", "final"]),
    ],
)
def test_updates_come_as_the_stream_mode_says_and_make_the_same_answer(
    stream: Any, expected: list[str]
) -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        updates = list(opened.stream("hi", stream=stream, timeout_s=TIMEOUT_S))
    assert kinds(updates) == expected
    assert gather(updates) == Generation("Hello, world", (1, 2, 3, 4), "stop", USAGE)


def test_generate_asks_for_the_whole_answer_at_once() -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        generation = opened.generate("hi", seed=3, timeout_s=TIMEOUT_S)
    assert generation == Generation("Hello, world", (1, 2, 3, 4), "stop", USAGE)
    assert inputs(fake.requests[0]) == {
        "text_input": "hi",
        "sampling_parameters": json.dumps({"seed": 3, "deadline_s": TIMEOUT_S}),
        "stream": "none",
    }


def test_the_timeout_is_the_requests_deadline_unless_another_is_given() -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        opened.generate("hi", timeout_s=TIMEOUT_S)
        opened.generate("hi", timeout_s=TIMEOUT_S, deadline_s=None)
        opened.generate("hi", timeout_s=TIMEOUT_S, deadline_s=0.5)
    sent = [json.loads(inputs(each)["sampling_parameters"]) for each in fake.requests]
    assert [each["deadline_s"] for each in sent] == [TIMEOUT_S, TIMEOUT_S, 0.5]


def test_the_functions_of_the_module_need_no_client_of_their_own() -> None:
    with FakeTriton(answer) as fake:
        updates = list(client.stream("hi", url=fake.url, timeout_s=TIMEOUT_S))
        generation = client.generate("hi", url=fake.url, timeout_s=TIMEOUT_S)
    assert gather(updates) == generation
    assert generation.text == "Hello, world"


def test_all_requests_of_a_client_share_its_connection() -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        with ThreadPoolExecutor(4) as threads:
            texts = [g.text for g in threads.map(lambda _: opened.generate("x"), range(8))]
        assert texts == ["Hello, world"] * 8
        assert len(fake.peers) == 1


def test_nothing_is_sent_before_the_first_update_is_asked_for() -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        updates = opened.stream("late", timeout_s=TIMEOUT_S)
        opened.generate("early", timeout_s=TIMEOUT_S)
        next(updates)
        updates.close()
    assert [inputs(request)["text_input"] for request in fake.requests] == ["early", "late"]


# The end of a stream


def test_the_final_update_is_given_once_the_server_has_ended_the_stream() -> None:
    """To cancel a stream behind its final response would leave the model unable to unload."""
    may_end = threading.Event()

    def slow_end(*_: object) -> Iterator[Any]:
        yield final("done")
        may_end.wait(TIMEOUT_S)

    with FakeTriton(slow_end) as fake, Client(fake.url) as opened:
        updates = opened.stream("x", timeout_s=TIMEOUT_S)
        threading.Timer(0.2, may_end.set).start()
        assert next(updates).kind == "final"
        assert may_end.is_set()
        updates.close()
        assert fake.completed.wait(TIMEOUT_S)
        assert not fake.cancelled.is_set()


def test_nothing_behind_the_final_response_is_an_update() -> None:
    script = plays(final("a"), end_marker(), response("block", "late"))
    with FakeTriton(script) as fake, Client(fake.url) as opened:
        assert kinds(list(opened.stream("x", timeout_s=TIMEOUT_S))) == ["final"]


@pytest.mark.parametrize("messages", [(), (response("block", "a"),), (end_marker(),)])
def test_a_stream_that_ends_without_final_response_is_a_server_failure(
    messages: tuple[Any, ...],
) -> None:
    with (
        FakeTriton(plays(*messages)) as fake,
        Client(fake.url) as opened,
        pytest.raises(ServerFailure, match="ended without a final response"),
    ):
        opened.generate("x", timeout_s=TIMEOUT_S)


def test_updates_without_a_final_one_are_no_answer() -> None:
    with pytest.raises(ServerFailure, match="without a final one"):
        gather([])


# Leaving early


@pytest.mark.parametrize("leave", ["close the generator", "leave the loop", "close the client"])
def test_who_leaves_early_cancels_the_request_on_the_server(leave: str) -> None:
    with FakeTriton(one_block_then_wait) as fake, Client(fake.url) as opened:
        updates = opened.stream("x", timeout_s=TIMEOUT_S)
        assert next(updates).text == "Hello"
        assert not fake.cancelled.is_set()
        match leave:
            case "close the generator":
                updates.close()
            case "leave the loop":
                del updates
            case "close the client":
                opened.close()
        assert fake.cancelled.wait(TIMEOUT_S)


def test_leaving_the_module_s_stream_early_cancels_too() -> None:
    with FakeTriton(one_block_then_wait) as fake:
        updates = client.stream("x", url=fake.url, timeout_s=TIMEOUT_S)
        next(updates)
        updates.close()
        assert fake.cancelled.wait(TIMEOUT_S)


def test_an_exception_in_the_loop_cancels_the_request() -> None:
    with FakeTriton(one_block_then_wait) as fake:
        with pytest.raises(KeyboardInterrupt), Client(fake.url) as opened:
            for _ in opened.stream("x", timeout_s=TIMEOUT_S):
                raise KeyboardInterrupt
        assert fake.cancelled.wait(TIMEOUT_S)


def test_a_finished_request_is_not_cancelled() -> None:
    with FakeTriton(answer) as fake, Client(fake.url) as opened:
        opened.generate("x", timeout_s=TIMEOUT_S)
        assert fake.completed.wait(TIMEOUT_S)
        assert not fake.cancelled.is_set()


# Who asks, and who answers


def test_the_key_goes_with_every_request_as_metadata() -> None:
    with FakeTriton(answer) as fake:
        with Client(fake.url, api_key="dgk_1") as opened:
            opened.generate("x", timeout_s=TIMEOUT_S)
            list(opened.stream("x", timeout_s=TIMEOUT_S))
        client.generate("x", url=fake.url, api_key="dgk_2", timeout_s=TIMEOUT_S)
        list(client.stream("x", url=fake.url, api_key="dgk_3", timeout_s=TIMEOUT_S))
        client.generate("x", url=fake.url, timeout_s=TIMEOUT_S)
    sent = [metadata.get("authorization") for metadata in fake.metadata]
    assert sent == ["Bearer dgk_1"] * 2 + ["Bearer dgk_2", "Bearer dgk_3", None]


@pytest.mark.parametrize("key", ["", "two words", "a\nb", "né"])
def test_what_is_no_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(RequestRejected, match="api_key: must be printable ASCII") as refused:
        Client(api_key=key)
    assert not key or key not in str(refused.value)


def test_tls_trusts_the_given_authorities_and_no_others(tmp_path: Path) -> None:
    ours, unrelated = tmp_path / "ours.pem", tmp_path / "unrelated.pem"
    ours.write_bytes(tls.CERTIFICATE)
    unrelated.write_bytes(tls.UNRELATED)
    with FakeTriton(answer, tls=(tls.KEY, tls.CERTIFICATE)) as fake:
        with Client(fake.url, tls_ca=ours, api_key="dgk_1") as opened:
            assert opened.generate("x", timeout_s=TIMEOUT_S).text == "Hello, world"
        for other in (unrelated, None):
            with Client(fake.url, tls_ca=other) as opened, pytest.raises(Unavailable) as failed:
                opened.generate("x", timeout_s=TIMEOUT_S)
            if other is not None:
                assert failed.value.message.startswith(f"no TLS connection to {fake.url}")
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot read .*: No such file"), ("junk", "holds no certificate in PEM form")],
)
def test_authorities_that_are_none_are_refused(
    tmp_path: Path, content: str | None, says: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestRejected, match=f"^tls_ca: .*{says}"):
        Client(tls_ca=path)


def test_authorities_and_credentials_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RequestRejected, match="give either tls_ca or credentials"):
        Client(tls_ca=tmp_path / "ca.pem", credentials=grpc.ssl_channel_credentials())
