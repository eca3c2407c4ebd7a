from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dgemma.errors import EngineFailure
from dgemma.reply import Reply, Response
from dgemma.responder import WRITTEN_FOR_NOBODY_S, WRITTEN_S, Conversation, Responder
from dgemma.scheduler.events import Event
from tests.dgemma.hand_made import annotate, block, draft, finished, request

PATIENCE_S = 20.0


class FakeChannel:
    """A client: what it was sent, whether it has gone, and whether sending to it fails."""

    def __init__(self, *, gone: bool = False, broken: bool = False, dead: bool = False) -> None:
        self.gone, self.broken, self.dead = gone, broken, dead
        self.sent: list[tuple[str, str, bool]] = []  # kind, text, final
        self.failures: list[Exception] = []
        self.polls = 0
        self.faults: list[str] = []  # what Triton would have died of
        self.ended = False

    def send(self, response: Response, final: bool) -> None:
        self._must_be_open("send")
        if self.broken or self.dead:
            raise ValueError("the pipe is broken")
        self.sent.append((response.kind, response.text_output, final))
        self.ended = final

    def fail(self, error: Exception) -> None:
        self._must_be_open("fail")
        if self.dead:
            raise ValueError("the pipe is dead")
        self.failures.append(error)
        self.ended = True

    def is_cancelled(self) -> bool:
        self._must_be_open("is_cancelled")
        self.polls += 1
        return self.gone

    def _must_be_open(self, what: str) -> None:
        if self.ended:
            self.faults.append(what)


class Cancellations:
    """The service's side: which requests were cancelled, in order."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, request_id: str) -> None:
        self.ids.append(request_id)


@contextmanager
def responding(cancel: Callable[[str], None]) -> Iterator[Responder]:
    responder = Responder(cancel)
    try:
        yield responder
    finally:
        responder.close()


def conversation(channel: FakeChannel, request_id: str = "r") -> Conversation:
    return Conversation(request_id, channel, Reply(request(request_id), annotate))


def respond(channel: FakeChannel, *events: Event) -> list[str]:
    """Answer the events to the end; the requests that were cancelled meanwhile."""
    cancellations = Cancellations()
    with responding(cancellations) as responder:
        talk = conversation(channel)
        for event in events:
            responder.post(talk, event)
    return cancellations.ids


def poll_until(responder: Responder, condition: Callable[[], bool]) -> None:
    """Ask again and again, as passes do."""

    def asked() -> bool:
        responder.poll()
        return condition()

    wait_for(asked)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


# Order


def test_responses_are_sent_in_order_and_only_the_last_is_final() -> None:
    channel = FakeChannel()
    assert respond(channel, block("a"), block("b"), finished()) == []
    assert channel.sent == [("block", "a", False), ("block", "b", False), ("final", "", True)]


def test_closing_sends_all_that_was_posted_before() -> None:
    channel = FakeChannel()
    respond(channel, *[block(str(number)) for number in range(500)], finished())
    assert [text for _, text, _ in channel.sent[:-1]] == [str(number) for number in range(500)]


def test_each_client_gets_its_own_answer_whoever_posts() -> None:
    channels = [FakeChannel() for _ in range(8)]
    with responding(Cancellations()) as responder:

        def talk(index: int) -> None:
            mine = conversation(channels[index], str(index))
            responder.watch(mine)
            for number in range(50):
                responder.post(mine, block(f"{index}:{number}"))
            responder.post(mine, finished())

        threads = [threading.Thread(target=talk, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, channel in enumerate(channels):
        assert [text for _, text, _ in channel.sent] == [f"{index}:{n}" for n in range(50)] + [""]
        assert channel.faults == []


def test_an_event_without_response_sends_nothing() -> None:
    channel = FakeChannel()
    respond(channel, draft(), finished())
    assert [kind for kind, _, _ in channel.sent] == ["final"]


# The final response, behind the one before it


class Timed(FakeChannel):
    """Knows when each response was sent."""

    def __init__(self, *, gone: bool = False) -> None:
        super().__init__(gone=gone)
        self.times: list[float] = []

    def send(self, response: Response, final: bool) -> None:
        self.times.append(time.monotonic())
        super().send(response, final)


@pytest.mark.parametrize(("gone", "least"), [(False, WRITTEN_S), (True, WRITTEN_FOR_NOBODY_S)])
def test_the_final_response_waits_until_the_one_before_is_written(gone: bool, least: float) -> None:
    channel = Timed(gone=gone)
    respond(channel, block("a"), finished())
    assert channel.sent == [("block", "a", False), ("final", "", True)]
    assert channel.times[1] - channel.times[0] >= least
    assert channel.faults == []


def test_a_final_response_that_waits_keeps_nobody_else_waiting() -> None:
    order: list[str] = []

    class Ordered(FakeChannel):
        def send(self, response: Response, final: bool) -> None:
            order.append(response.text_output or response.kind)
            super().send(response, final)

    with responding(Cancellations()) as responder:
        first, second = (conversation(Ordered(gone=True), name) for name in ("first", "second"))
        responder.watch(first)
        responder.post(first, block("of the first"))
        responder.post(first, finished())
        responder.poll()  # by which it is known to have gone
        responder.post(second, block("of the second"))
    assert order[:3] == ["of the first", "of the second", "final"]


# Clients that have gone


def test_a_client_that_has_gone_is_noticed_once_and_told_to_the_service() -> None:
    cancellations, channel = Cancellations(), FakeChannel()
    with responding(cancellations) as responder:
        talk = conversation(channel)
        responder.watch(talk)
        poll_until(responder, lambda: channel.polls > 3)  # at every pass while it stays
        assert cancellations.ids == []
        channel.gone = True
        poll_until(responder, lambda: bool(cancellations.ids))
        polls = channel.polls
        responder.post(talk, block("too late"))
        responder.post(talk, finished("cancelled"))
    assert cancellations.ids == ["r"]
    assert channel.polls == polls
    # Triton waits for the final response, also when nobody listens.
    assert channel.sent == [("final", "", True)]


def test_a_client_is_not_asked_after_its_final_response() -> None:
    channel, other = FakeChannel(), FakeChannel()
    with responding(Cancellations()) as responder:
        talk = conversation(channel)
        responder.watch(talk)
        poll_until(responder, lambda: channel.polls > 0)
        responder.post(talk, finished())
        responder.watch(talk)  # as it happens where the answer was there before `watch`
        responder.watch(conversation(other))
        poll_until(responder, lambda: other.polls > 3)
    assert channel.faults == []
    assert len(channel.sent) == 1


def test_only_those_who_have_gone_are_cancelled() -> None:
    cancellations, stays = Cancellations(), FakeChannel()
    with responding(cancellations) as responder:
        responder.watch(conversation(stays, "stays"))
        responder.watch(conversation(FakeChannel(gone=True), "gone"))
        poll_until(responder, lambda: bool(cancellations.ids))
        polls = stays.polls
        poll_until(responder, lambda: stays.polls > polls)
    assert cancellations.ids == ["gone"]


def test_responses_in_plenty_do_not_keep_a_cancellation_waiting() -> None:
    cancellations, enough = Cancellations(), threading.Event()

    class Chatty(FakeChannel):
        """There is always one more response to be sent."""

        def send(self, response: Response, final: bool) -> None:
            if not enough.is_set():
                responder.post(talk, block("x"))

    with responding(cancellations) as responder:
        talk = conversation(Chatty())
        responder.post(talk, block("x"))
        try:
            responder.watch(conversation(FakeChannel(gone=True), "gone"))
            poll_until(responder, lambda: bool(cancellations.ids))
        finally:
            enough.set()
    assert cancellations.ids == ["gone"]


def test_nobody_is_asked_between_passes() -> None:
    channel = FakeChannel()
    with responding(Cancellations()) as responder:
        responder.watch(conversation(channel))
        responder.poll()
    assert channel.polls == 1


def test_polls_that_cannot_be_kept_up_with_do_not_pile_up() -> None:
    asked, slow = threading.Event(), threading.Event()

    class Slow(FakeChannel):
        def is_cancelled(self) -> bool:
            asked.set()
            assert slow.wait(PATIENCE_S)
            return super().is_cancelled()

    channel = Slow()
    with responding(Cancellations()) as responder:
        responder.watch(conversation(channel))
        responder.poll()
        assert asked.wait(PATIENCE_S)
        for _ in range(100):  # passes that end while the first answer is awaited
            responder.poll()
        slow.set()
    assert channel.polls <= 2


# Failures


def test_a_request_that_ended_with_an_error_gets_it_as_its_last_response() -> None:
    channel, error = FakeChannel(), EngineFailure("a pass failed")
    respond(channel, block("a"), finished("error", error))
    assert channel.sent == [("block", "a", False)]
    assert channel.failures == [error]
    assert channel.faults == []


@pytest.mark.parametrize("dead", [False, True])
def test_a_channel_that_fails_ends_its_request_and_no_other(dead: bool) -> None:
    cancellations = Cancellations()
    bad, good = FakeChannel(broken=True, dead=dead), FakeChannel()
    with responding(cancellations) as responder:
        talks = [conversation(bad, "bad"), conversation(good, "good")]
        for event in (block("a"), block("b"), finished()):
            for talk in talks:
                responder.post(talk, event)
    assert cancellations.ids == ["bad"]
    assert [str(error) for error in bad.failures] == ([] if dead else ["the pipe is broken"])
    assert [text for _, text, _ in good.sent] == ["a", "b", ""]


def test_a_channel_that_cannot_be_asked_does_not_end_the_thread() -> None:
    class Unaskable(FakeChannel):
        def is_cancelled(self) -> bool:
            self.polls += 1
            raise ValueError("no longer there")

    unaskable, channel = Unaskable(), FakeChannel()
    with responding(Cancellations()) as responder:
        responder.watch(conversation(unaskable, "unaskable"))
        poll_until(responder, lambda: unaskable.polls > 0)
        responder.post(conversation(channel), block("still here"))
        responder.post(conversation(channel), finished())
    assert [text for _, text, _ in channel.sent] == ["still here", ""]
