from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from dgemma.client_errors import (
    ClientError,
    DeadlineExceeded,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from dgemma.front.health import PROBE_ID, Readiness
from dgemma.front.triton import Question
from dgemma.kserve import Update

FINAL = Update("final", "", (), (), 0, 1, "length", {})


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Service:
    """Answers, or raises `error`; counts the questions."""

    def __init__(self) -> None:
        self.error: ClientError | None = None
        self.asked: list[Question] = []

    async def ask(self, question: Question) -> AsyncGenerator[Update, None]:
        self.asked.append(question)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        yield FINAL


def readiness(clock: Clock, **changes: Any) -> Readiness:
    return Readiness(**{"timeout_s": 2.0, "cache_s": 1.0, "clock": clock, **changes})


def trouble(readiness: Readiness, service: Service) -> str | None:
    return asyncio.run(readiness.trouble(service))


def test_it_is_ready_when_one_canvas_has_been_denoised() -> None:
    service = Service()
    assert trouble(readiness(Clock(), api_key="sk"), service) is None
    [question] = service.asked
    assert question.options["max_new_tokens"] == question.options["max_denoising_steps"] == 1
    assert (question.request_id, question.timeout_s) == (PROBE_ID, 2.0)
    assert question.authorization == "Bearer sk"


@pytest.mark.parametrize("error", [None, Unavailable("it is starting")])
def test_what_was_found_holds_for_a_while(error: ClientError | None) -> None:
    clock, service = Clock(), Service()
    service.error = error
    ready = readiness(clock)
    expected = error and error.message
    assert [trouble(ready, service) for _ in range(3)] == [expected] * 3
    assert len(service.asked) == 1
    clock.now += 1.5
    service.error = None
    assert trouble(ready, service) is None
    assert len(service.asked) == 2


def test_one_inference_serves_all_who_ask_meanwhile() -> None:
    async def many(ready: Readiness) -> list[str | None]:
        return await asyncio.gather(*(ready.trouble(service) for _ in range(10)))

    service = Service()
    assert asyncio.run(many(readiness(Clock()))) == [None] * 10
    assert len(service.asked) == 1


def test_answers_to_others_show_it_as_well() -> None:
    clock, service = Clock(), Service()
    ready = readiness(clock)
    service.error = DeadlineExceeded("no answer")
    assert trouble(ready, service) == "no answer"
    clock.now += 0.5
    ready.answered()
    assert trouble(ready, service) is None
    assert len(service.asked) == 1


def test_a_full_queue_is_ready_only_while_it_moves() -> None:
    clock, service = Clock(), Service()
    ready = readiness(clock)
    service.error = Overloaded("full")
    assert trouble(ready, service) == "full"
    ready.answered()
    clock.now += 5
    assert trouble(ready, service) is None
    clock.now += 6
    assert trouble(ready, service) == "full"


def test_a_probe_without_a_key_says_where_to_put_one() -> None:
    service = Service()
    service.error = Unauthenticated("no API key came")
    assert "DGEMMA_PROBE_API_KEY" in (trouble(readiness(Clock()), service) or "")


def test_a_trouble_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock, service = Clock(), Service()
    ready = readiness(clock)
    for error in (Unavailable("a"), Unavailable("a"), Unavailable("b"), None, Unavailable("b")):
        service.error = error
        clock.now += 2
        trouble(ready, service)
    assert [record.args for record in caplog.records] == [("a",), ("b",), ("b",)]


def test_closed_is_closed() -> None:
    service = Service()
    ready = readiness(Clock())
    ready.answered()
    ready.close("stopping")
    assert trouble(ready, service) == "stopping"
    assert service.asked == []
