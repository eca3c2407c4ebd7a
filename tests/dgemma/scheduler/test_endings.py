from __future__ import annotations

import pytest

from dgemma.errors import EngineFailure, InvalidRequest
from dgemma.scheduler.events import Finished
from dgemma_build.demo.vocabulary import to_ids
from tests.dgemma.engine.fake_engine import hashed
from tests.dgemma.scheduler.requests import desk, fixed_steps, request

L = 8


@pytest.mark.parametrize("passes", range(8))
def test_a_request_can_be_cancelled_in_every_phase(passes: int) -> None:
    """Waiting, in its prompt's chunks, denoising, between canvases."""
    at = desk(slots=1)
    at.submit(request("a", prompt="p" * 2 * L, **fixed_steps(3, max_new_tokens=3 * L)))
    at.submit(request("b"))
    for _ in range(passes):
        at.scheduler.step()
    at.scheduler.cancel("a")
    assert at.reason("a") == "cancelled"
    heard = len(at.heard["a"])
    assert at.usage("a").passes == passes
    at.scheduler.step()
    assert at.scheduler.stats.running == 1  # b has the slot in the very next pass
    at.run()
    assert at.reason("b") == "length"
    assert len(at.heard["a"]) == heard
    assert at.ids("b") == hashed(tuple(to_ids("?")), L)


def test_a_waiting_request_can_be_cancelled() -> None:
    at = desk(slots=1)
    at.submit(request("a", **fixed_steps(3)), request("b"), request("c"))
    at.scheduler.step()
    at.scheduler.cancel("b")
    assert (at.reason("b"), at.usage("b").passes) == ("cancelled", 0)
    assert at.scheduler.stats.waiting == 1
    at.run()
    assert at.reason("c") == "length"


def test_cancelling_twice_or_what_has_ended_says_nothing_more() -> None:
    at = desk()
    at.submit(request("a"), request("b"))
    at.scheduler.cancel("a")
    at.scheduler.cancel("a")
    at.scheduler.cancel("nobody")
    at.run()
    at.scheduler.cancel("b")
    assert [type(event) for event in at.heard["a"]] == [Finished]
    assert at.reason("b") == "length"


def test_a_cancelled_neighbour_changes_nothing_for_the_others() -> None:
    alone, crowd = desk(wavering=12.0), desk(wavering=12.0)
    asked = request("b", **fixed_steps(6, max_new_tokens=2 * L))
    alone.submit(asked)
    alone.run()
    crowd.submit(request("a", **fixed_steps(20)), asked)
    crowd.scheduler.step()
    crowd.scheduler.step()
    crowd.scheduler.cancel("a")
    crowd.run()
    assert crowd.ids("b") == alone.ids("b")


def test_a_failing_pass_ends_its_requests_and_the_waiting_ones_go_on() -> None:
    at = desk(slots=2)
    at.submit(*(request(name, **fixed_steps(3)) for name in "abc"))
    at.scheduler.step()
    at.engine.failure = EngineFailure("out of order")
    with pytest.raises(EngineFailure, match="out of order"):
        at.scheduler.step()
    assert [at.reason(name) for name in "abc"] == ["error", "error", None]
    end = at.end("a")
    assert end is not None and "out of order" in str(end.error)
    assert end.usage.passes == 1
    at.run()
    assert at.reason("c") == "length"
    assert at.ids("c") == hashed(tuple(to_ids("?")), L)


def test_an_unexpected_error_of_the_engine_reaches_the_client_as_an_engine_failure() -> None:
    at = desk()
    at.submit(request("a"))
    at.engine.failure = MemoryError("no room")
    with pytest.raises(MemoryError):
        at.scheduler.step()
    end = at.end("a")
    assert end is not None
    assert isinstance(end.error, EngineFailure) and not isinstance(end.error, InvalidRequest)
    assert end.error.grpc_code == "INTERNAL"
    assert "no room" in str(end.error)


def test_slots_of_failed_requests_are_free_again() -> None:
    at = desk(slots=2)
    for _ in range(5):
        at.submit(request("a"), request("b"))
        at.engine.failure = EngineFailure("again")
        with pytest.raises(EngineFailure):
            at.scheduler.step()
        assert at.scheduler.stats.running == 0
    at.submit(request("c"), request("d"))
    at.run()
    assert (at.reason("c"), at.reason("d")) == ("length", "length")
