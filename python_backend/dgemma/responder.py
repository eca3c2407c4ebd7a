"""The thread that sends responses and notices clients that have gone.

Knows when to send and when to ask; knows neither Triton nor what is in a response.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from dgemma.errors import DgemmaError
from dgemma.reply import Reply, Response
from dgemma.scheduler.events import Event, Finished

logger = logging.getLogger(__name__)

# Asking costs about 0.1 ms a request: at most this share of the thread's time.
POLL_SHARE = 0.2
# Triton gives up a cancelled stream when it gets the final response, also while it still writes the
# one before, and then what it has freed is used again: it crashes. So the final response waits
# until that has been written, longer where nobody waits for it.
WRITTEN_S, WRITTEN_FOR_NOBODY_S = 0.001, 0.02


class Channel(Protocol):
    """The way to one client. Nothing may be asked of it after its final response."""

    def send(self, response: Response, final: bool) -> None: ...
    def fail(self, error: Exception) -> None:
        """Send the error as the final response."""

    def is_cancelled(self) -> bool: ...


@dataclass(eq=False)
class Conversation:
    """One request's channel and how far it is; after `post` only the thread touches it."""

    request_id: str
    channel: Channel
    reply: Reply
    cancelled: bool = False
    ended: bool = False
    sent_at: float = -float("inf")  # the latest response

    def final_at(self) -> float:
        """When the final response may be sent, by the monotonic clock."""
        return self.sent_at + (WRITTEN_FOR_NOBODY_S if self.cancelled else WRITTEN_S)


class Responder:
    """Sends what is posted, in order, and calls `cancel(request_id)` for clients that have gone.

    One thread does both: to ask a channel that has had its final response is fatal to Triton.
    """

    def __init__(self, cancel: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._posts: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._watched: set[Conversation] = set()
        self._held: list[tuple[Conversation, Finished]] = []  # final responses, some for a while
        self._poll_at = 0.0
        self._poll_due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)
        self._thread.start()

    def post(self, conversation: Conversation, event: Event) -> None:
        """Answer an event, soon; returns at once."""
        self._posts.put(partial(self._answer, conversation, event))

    def watch(self, conversation: Conversation) -> None:
        """Ask for the client's cancellation at every `poll` until the conversation ends."""
        self._posts.put(partial(self._watch, conversation))

    def poll(self) -> None:
        """Ask all watched clients, soon; returns at once.

        Meant for after every pass: a slot is freed between passes, so that asking more often would
        free none sooner, and would wake threads that a pass on the host needs.
        """
        if not self._poll_due.is_set():
            self._poll_due.set()
            self._posts.put(self._poll)

    def close(self) -> None:
        """Send all that has been posted and end the thread."""
        self._posts.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            call()
        while self._held:
            time.sleep(max(0.0, self._held_until() - time.monotonic()))
            self._answer_held()

    def _next(self) -> Callable[[], None] | None:
        """What has been posted, or, where that is due, the answering of what is held."""
        if not self._held:
            return self._posts.get()
        left = self._held_until() - time.monotonic()
        try:
            return self._posts.get(timeout=left) if left > 0 else self._answer_held
        except Empty:
            return self._answer_held

    def _held_until(self) -> float:
        return min(conversation.final_at() for conversation, _ in self._held)

    def _answer_held(self) -> None:
        """Send the final responses that may be sent; those of clients that have gone wait on."""
        held, self._held = self._held, []
        for conversation, event in held:
            if not conversation.cancelled and conversation.final_at() <= time.monotonic():
                self._ask(conversation)
            self._answer(conversation, event)

    def _watch(self, conversation: Conversation) -> None:
        if not conversation.ended:
            self._watched.add(conversation)

    def _poll(self) -> None:
        self._poll_due.clear()
        began = time.monotonic()
        if began < self._poll_at:
            return  # the next pass asks again
        for conversation in list(self._watched):
            self._ask(conversation)
        ended = time.monotonic()
        self._poll_at = ended + (ended - began) * (1 / POLL_SHARE - 1)

    def _ask(self, conversation: Conversation) -> None:
        """Whether the client has gone."""
        try:
            gone = conversation.channel.is_cancelled()
        except Exception as error:  # one broken channel must not end the thread
            self._fail(conversation, error)
            return
        if gone:
            conversation.cancelled = True
            self._watched.discard(conversation)
            self._cancel(conversation.request_id)

    def _answer(self, conversation: Conversation, event: Event) -> None:
        if conversation.ended:
            return
        final = isinstance(event, Finished)
        if conversation.cancelled and not final:
            return  # nobody listens, but Triton waits for the final response
        if isinstance(event, Finished) and conversation.final_at() > time.monotonic():
            self._held.append((conversation, event))
            return
        try:
            response = conversation.reply.response(event)
            if response is not None:
                conversation.channel.send(response, final)
                conversation.sent_at = time.monotonic()
        except Exception as error:
            self._fail(conversation, error)
        else:
            if final:
                self._end(conversation)

    def _fail(self, conversation: Conversation, error: Exception) -> None:
        if not isinstance(error, DgemmaError):
            logger.error(
                "request %s: no response",
                conversation.request_id,
                exc_info=error,
                extra={"request_id": conversation.request_id},
            )
        self._end(conversation)
        self._cancel(conversation.request_id)
        try:
            conversation.channel.fail(error)
        except Exception:
            logger.exception(
                "request %s: its channel is broken",
                conversation.request_id,
                extra={"request_id": conversation.request_id},
            )

    def _end(self, conversation: Conversation) -> None:
        conversation.ended = True
        self._watched.discard(conversation)
