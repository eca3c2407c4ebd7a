"""What is refused at once and with which words, and what an end gives back."""

from __future__ import annotations

from typing import Any

import pytest

from dgemma.errors import DeadlineExceeded, InvalidRequest, ResourceExhausted
from dgemma.scheduler.options import Options
from dgemma.scheduler.tenancy import Limits, Tenant
from dgemma_build.demo.vocabulary import EOS, to_ids
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.scheduler.requests import Desk, desk, fixed_steps, request
from tests.dgemma.scheduler.virtual import timed_desk

L = 8


def limited(**limits: Any) -> Tenant:
    return Tenant("acme", limits=Limits(**limits))


def refusal(at: Desk, *, like: type[Exception] = ResourceExhausted, **asked: Any) -> str:
    with pytest.raises(like) as caught:
        at.submit(request("refused", **asked))
    assert not at.heard["refused"]
    if isinstance(caught.value, ResourceExhausted):
        assert caught.value.retry_after_s > 0
    return str(caught.value)


# Queues


def test_a_full_queue_refuses_and_has_room_again_when_somebody_has_gone() -> None:
    at = desk(slots=1, options=Options(max_queued=2))
    at.submit(request("a"))
    at.scheduler.step()
    at.submit(request("b"), request("c"))
    assert "2 requests wait already, of 2 that may; retry after" in refusal(at)
    at.scheduler.cancel("b")
    at.submit(request("d"))
    at.run()
    assert [at.reason(name) for name in "abcd"] == ["length", "cancelled", "length", "length"]


def test_requests_that_find_a_slot_do_not_count_as_waiting() -> None:
    at = desk(slots=2, options=Options(max_queued=0))
    at.submit(request("a"), request("b"))
    refusal(at)
    at.run()
    assert (at.reason("a"), at.reason("b")) == ("length", "length")
    at.submit(request("c"))


def test_who_will_have_a_free_slot_takes_no_place_in_the_queue() -> None:
    at = desk(slots=2, options=Options(max_queued=1))
    at.submit(*(request(name) for name in "abc"))  # all before the next pass
    assert "1 requests wait already, of 1 that may" in refusal(at)
    at.run()
    assert {at.reason(name) for name in "abc"} == {"length"}


def test_a_tenant_that_waits_for_its_own_slots_keeps_nobody_out() -> None:
    at, tenant = desk(slots=3, options=Options(max_queued=1)), limited(max_running=1)
    at.submit(*(request(f"a{i}", tenant=tenant, **fixed_steps(3)) for i in range(2)))
    at.scheduler.step()
    at.submit(request("b"))
    at.scheduler.step()
    assert at.scheduler.stats.running == 2


def test_a_tenants_burst_takes_its_slots_and_its_places() -> None:
    at, tenant = desk(slots=4), limited(max_queued=1, max_running=2)
    at.submit(*(request(name, tenant=tenant) for name in "abc"))
    assert "1 requests of tenant acme wait already, of 1 that may" in refusal(at, tenant=tenant)


def test_a_tenants_queue_is_its_own() -> None:
    at, tenant = desk(slots=1), limited(max_queued=1)
    at.submit(request("a"))
    at.scheduler.step()
    at.submit(request("b", tenant=tenant))
    message = refusal(at, tenant=tenant)
    assert "1 requests of tenant acme wait already, of 1 that may" in message
    at.submit(request("c"))  # another tenant
    at.run()
    assert at.reason("c") == "length"


def test_a_tenant_that_may_not_queue_runs_what_it_may() -> None:
    at, tenant = desk(slots=4), limited(max_queued=0, max_running=2)
    at.submit(request("a", tenant=tenant), request("b", tenant=tenant))
    refusal(at, tenant=tenant)
    at.scheduler.step()
    refusal(at, tenant=tenant)
    at.run()
    at.submit(request("c", tenant=tenant))


def test_a_tenant_at_its_limit_leaves_slots_to_others() -> None:
    at, tenant = desk(slots=3), limited(max_running=1)
    at.submit(*(request(f"a{i}", tenant=tenant, **fixed_steps(3)) for i in range(3)))
    at.submit(request("b", **fixed_steps(3)))
    at.scheduler.step()
    assert at.scheduler.stats.running == 2
    at.run()
    assert {at.reason(name) for name in ("a0", "a1", "a2", "b")} == {"length"}


def test_the_time_to_wait_follows_what_canvases_take() -> None:
    at, _ = timed_desk(slots=1, options=Options(max_queued=0))
    at.submit(request("a", **fixed_steps(30)))
    at.run()
    at.submit(request("b", **fixed_steps(30)))
    with pytest.raises(ResourceExhausted) as caught:
        at.submit(request("c"))
    assert caught.value.retry_after_s == pytest.approx(30 * 0.011, rel=0.1)


# What a tenant can never have


def test_a_context_longer_than_the_tenants() -> None:
    at, tenant = desk(), limited(max_context=20)
    at.submit(request("a", tenant=tenant, prompt="x" * 12, max_new_tokens=8))
    message = refusal(at, like=InvalidRequest, tenant=tenant, prompt="x" * 13, max_new_tokens=8)
    assert message.startswith("sampling_parameters.max_new_tokens: 13 prompt tokens + 8 new")
    assert "max_context 20 of tenant acme" in message


def test_priorities_that_the_tenant_does_not_have() -> None:
    at, tenant = desk(), limited(min_priority=-2, max_priority=1)
    at.submit(request("a", tenant=tenant, priority=1))
    message = refusal(at, like=InvalidRequest, tenant=tenant, priority=2)
    assert message == "sampling_parameters.priority: got 2; allowed for tenant acme: -2 to 1"


def test_a_request_without_priority_has_one_that_is_allowed() -> None:
    at = desk()
    at.submit(request("a", tenant=limited(min_priority=3, max_priority=7)))
    at.run()
    assert at.reason("a") == "length"


def test_more_tokens_than_a_minute_has() -> None:
    message = refusal(
        desk(), like=InvalidRequest, tenant=limited(tokens_per_minute=10), max_new_tokens=10
    )
    assert "tokens_per_minute 10" in message


# Tokens per minute


def test_tokens_are_reserved_and_settled_by_what_was_used() -> None:
    at, time = timed_desk(slots=4)
    tenant = limited(tokens_per_minute=100)
    asked: dict[str, Any] = {"tenant": tenant, "prompt": "x" * 10, "max_new_tokens": 40}
    at.submit(request("a", **asked), request("b", **asked))
    assert "tokens_per_minute 100; this request may need 50" in refusal(at, **asked)
    at.scheduler.cancel("b")  # it has not begun
    at.submit(request("c", **asked))
    at.run()
    with pytest.raises(ResourceExhausted) as caught:
        at.submit(request("d", **asked))
    time.now += caught.value.retry_after_s
    at.submit(request("d", **asked))
    at.run()
    assert {at.reason(name) for name in "acd"} == {"length"}


def test_what_was_used_before_the_server_began_counts() -> None:
    at, tenant = desk(slots=1), limited(tokens_per_minute=60)
    at.scheduler.admission.charge(tenant, 59.0)
    assert "has used its tokens_per_minute 60" in refusal(at, tenant=tenant)
    at.scheduler.admission.charge(limited(), 59.0)
    at.submit(request("a"))
    at.run()
    assert at.reason("a") == "length"


def test_an_answer_that_stops_early_gives_back_what_it_did_not_use() -> None:
    at, _ = timed_desk(wish=lambda context: [*to_ids("ab"), *[EOS] * (L - 2)])
    tenant = limited(tokens_per_minute=100)
    asked: dict[str, Any] = {"tenant": tenant, "prompt": "x" * 8, "max_new_tokens": 40}
    for name in "abcdef":  # 48 tokens are reserved, 10 used
        at.submit(request(name, **asked))
        at.run()
    refusal(at, **asked)


# Deadlines


def test_a_deadline_that_cannot_be_met_is_refused_before_it_waits() -> None:
    at, _ = timed_desk(slots=1)
    at.submit(request("first", deadline_s=0.001, **fixed_steps(10)))  # nothing is known yet
    at.scheduler.cancel("first")
    at.submit(request("a", **fixed_steps(10)))
    at.run()  # 10 passes of 11 ms
    refused: dict[str, Any] = {"like": DeadlineExceeded, **fixed_steps(10)}
    message = refusal(at, deadline_s=0.1, **refused)
    assert message.startswith("sampling_parameters.deadline_s: 0.1 s from its arrival")
    assert "cannot be met" in message
    at.submit(request("b", deadline_s=0.15, **fixed_steps(10)))
    refusal(at, deadline_s=0.15, prompt="x" * 10 * L, **refused)  # five more passes
    at.run()
    assert at.reason("b") == "length"


def test_a_deadline_that_passes_in_the_queue_costs_no_pass() -> None:
    at, _ = timed_desk(slots=1)
    at.submit(request("a", **fixed_steps(20)))
    at.scheduler.step()
    at.submit(request("b", deadline_s=0.1, **fixed_steps(1)))
    at.run()
    end = at.end("b")
    assert end is not None and isinstance(end.error, DeadlineExceeded)
    assert end.usage.passes == 0
    assert len(at.engine.passes) == 20


def test_a_deadline_that_passes_in_a_slot_frees_it_before_the_next_pass() -> None:
    at, _ = timed_desk(slots=1)
    at.submit(request("a", deadline_s=0.1, **fixed_steps(20, max_new_tokens=5 * L)))
    at.submit(request("b", **fixed_steps(2)))
    at.run()
    end = at.end("a")
    assert end is not None and isinstance(end.error, DeadlineExceeded)
    assert end.error.grpc_code == "DEADLINE_EXCEEDED"
    assert end.usage.passes == 10
    assert at.reason("b") == "length"


def test_what_is_known_of_a_prompt_counts_for_its_deadline() -> None:
    options = Options(prefix_cache_bytes=1 << 20)
    at, _ = timed_desk(slots=1, options=options, geometry=geometry_of(sliding_window=2 * L))
    prompt = "x" * 12 * L
    at.submit(request("a", prompt=prompt, **fixed_steps(10)))
    at.run()
    urgent: dict[str, Any] = {"prompt": prompt, "deadline_s": 0.12, **fixed_steps(10)}
    refusal(at, like=DeadlineExceeded, cache_salt=b"another", **urgent)
    at.submit(request("b", **urgent))
    at.run()
    assert at.reason("b") == "length"


def test_far_deadlines_keep_no_request_that_has_ended() -> None:
    at, _ = timed_desk(slots=2)
    for number in range(50):
        at.submit(request(str(number), deadline_s=80_000.0, max_new_tokens=1))
        if number % 5 == 4:
            at.run()
        assert len(at.scheduler.deadlines) <= 10
    assert len(at.scheduler.deadlines) == 0


def test_a_slot_is_not_given_to_who_cannot_end_in_time_any_more() -> None:
    at, _ = timed_desk(slots=1)
    at.submit(request("a", **fixed_steps(10)))
    at.scheduler.step()
    at.submit(request("b", deadline_s=0.2, **fixed_steps(10)))  # 0.11 s by itself
    at.run()
    end = at.end("b")
    assert end is not None and isinstance(end.error, DeadlineExceeded)
    assert "when a slot was free" in str(end.error)
    assert end.usage.passes == 0
