from __future__ import annotations

import pytest

from dgemma.engine.base import NO_PARTNER
from dgemma.request import StreamMode
from dgemma.scheduler.events import Block, Draft, Finished
from dgemma_build.demo.vocabulary import EOS, to_ids
from tests.dgemma.engine.fake_engine import hashed
from tests.dgemma.scheduler.requests import desk, fixed_steps, modes, request

L = 8


# What a request costs


def test_one_canvas_needs_its_denoise_steps_and_no_other_pass() -> None:
    at = desk()
    at.submit(request("a", **fixed_steps(5)))
    at.run()
    assert modes(at.engine.passes) == ["ed", "d", "d", "d", "d"]
    assert at.usage("a").passes == 5
    assert at.reason("a") == "length"


def test_a_confident_canvas_stops_when_its_argmax_stays_the_same() -> None:
    at = desk()
    at.submit(request("a", max_denoising_steps=48))
    at.run()
    assert at.usage("a").denoising_steps == (2,)
    assert at.usage("a").cap_hits == 0


@pytest.mark.parametrize("prompt", [1, L - 1, L, L + 1, 2 * L, 3 * L + 5])
@pytest.mark.parametrize("canvases", [1, 3])
def test_passes_are_denoise_steps_and_the_chunks_before_the_last(
    prompt: int, canvases: int
) -> None:
    at = desk()
    at.submit(
        request("a", prompt=to_ids("x" * prompt), **fixed_steps(3, max_new_tokens=canvases * L))
    )
    at.run()
    chunks = -(-prompt // L)
    usage = at.usage("a")
    assert usage.denoising_steps == (3,) * canvases
    assert usage.passes == sum(usage.denoising_steps) + chunks - 1
    assert usage.passes == len(at.engine.passes) == at.scheduler.stats.passes


def test_a_prompt_is_encoded_in_chunks_and_the_last_goes_with_the_first_denoise_step() -> None:
    at = desk()
    prompt = to_ids("abcdefghijklmnopqrst")
    at.submit(request("a", prompt=prompt, **fixed_steps(2)))
    at.run()
    assert modes(at.engine.passes) == ["e", "e", "ed", "d"]
    chunks = [rows[0] for rows in at.engine.passes[:3]]
    assert [(row.start, row.valid) for row in chunks] == [(0, 8), (8, 8), (16, 4)]
    assert [t for row in chunks for t in row.ids[: row.valid].tolist()] == prompt
    assert [row.start for row in at.engine.passes[2]] == [16, 20]


def test_the_rows_of_a_fused_pass_are_partners() -> None:
    at = desk()
    for name in "abc":
        at.submit(request(name, prompt=name, **fixed_steps(2, max_new_tokens=3 * L)))
    at.run()
    fused = [rows for rows in at.engine.passes if any(not row.denoise for row in rows)]
    assert len(fused) == 3
    for rows in fused:
        assert modes([rows]) == ["ededed"]
        for index in range(0, 6, 2):
            assert rows[index].partner == NO_PARTNER
            assert rows[index + 1].partner == index
            assert rows[index + 1].slot == rows[index].slot
    for rows in at.engine.passes:
        if all(row.denoise for row in rows):
            assert {row.partner for row in rows} == {NO_PARTNER}


def test_a_canvas_is_committed_with_the_next_ones_first_step_and_not_after_the_last() -> None:
    at = desk()
    at.submit(request("a", **fixed_steps(2, max_new_tokens=3 * L)))
    at.run()
    assert modes(at.engine.passes) == ["ed", "d", "ed", "d", "ed", "d"]
    committed = [row for rows in at.engine.passes for row in rows if not row.denoise]
    assert [row.ids[: row.valid].tolist() for row in committed[1:]] == [
        list(block.delta.token_ids) for block in at.blocks("a")[:2]
    ]
    assert at.usage("a").committed_tokens == 3 * L


def test_each_canvas_follows_from_the_ones_before_it() -> None:
    at = desk()
    at.submit(request("a", prompt="hi", max_new_tokens=3 * L))
    at.run()
    context, wanted = tuple(to_ids("hi")), list[int]()
    for _ in range(3):
        wanted += hashed(context, L)
        context = (*to_ids("hi"), *wanted)
    assert at.ids("a") == wanted


def test_the_first_step_has_no_belief_and_later_ones_have() -> None:
    at = desk()
    at.submit(request("a", **fixed_steps(2, max_new_tokens=2 * L)))
    at.run()
    steps = [row for rows in at.engine.passes for row in rows if row.denoise]
    assert [row.soft is None for row in steps] == [True, False, True, False]


# Who runs when


def test_a_request_that_arrives_later_joins_at_the_next_pass() -> None:
    at = desk()
    at.submit(request("a", **fixed_steps(6)))
    at.scheduler.step()
    at.scheduler.step()
    at.submit(request("b", **fixed_steps(2)))
    at.run()
    assert modes(at.engine.passes) == ["ed", "d", "ded", "dd", "d", "d"]
    assert (at.usage("a").passes, at.usage("b").passes) == (6, 2)


def test_requests_are_served_in_order_of_arrival() -> None:
    at = desk(slots=2)
    names = "abcdef"
    for index, name in enumerate(names):
        at.submit(request(name, prompt=name, **fixed_steps(1 + index % 3)))
    at.run()
    prompts = [row.ids[0].item() for rows in at.engine.passes for row in rows if not row.denoise]
    assert prompts == to_ids(names)


def test_no_more_requests_run_than_there_are_slots() -> None:
    at = desk(slots=3)
    at.submit(*(request(str(i), **fixed_steps(2)) for i in range(7)))
    assert (at.scheduler.stats.waiting, at.scheduler.stats.running) == (7, 0)
    at.scheduler.step()
    stats = at.scheduler.stats
    assert (stats.slots, stats.waiting, stats.running) == (3, 4, 3)
    at.run()
    assert max(len({row.slot for row in rows}) for rows in at.engine.passes) == 3
    assert all(at.reason(str(i)) == "length" for i in range(7))


def test_an_engine_with_few_rows_runs_fewer_requests_than_it_has_slots() -> None:
    at = desk(slots=4, rows=4)
    assert at.scheduler.stats.slots == 2
    at.submit(*(request(str(i), **fixed_steps(2)) for i in range(4)))
    at.run()
    assert max(map(len, at.engine.passes)) == 4
    assert all(at.reason(str(i)) == "length" for i in range(4))


def test_a_freed_slot_is_used_again_for_a_new_context() -> None:
    at = desk(slots=1)
    at.submit(request("a", prompt="a long prompt of several chunks", max_new_tokens=2 * L))
    at.submit(request("b", prompt="b"))
    at.run()
    assert at.ids("b") == hashed(tuple(to_ids("b")), L)


def test_an_idle_scheduler_runs_no_pass() -> None:
    at = desk()
    assert at.scheduler.step() is False
    assert not at.scheduler.busy
    assert at.engine.passes == []


# Events


def test_drafts_come_before_their_block_and_the_end_comes_last() -> None:
    at = desk()
    at.submit(request("a", stream=StreamMode.DRAFT, **fixed_steps(2, max_new_tokens=2 * L)))
    at.run()
    assert [type(event) for event in at.heard["a"]] == [
        *(Draft, Draft, Block),
        *(Draft, Draft, Block),
        Finished,
    ]
    assert [(d.block_index, d.denoising_step) for d in at.drafts("a")] == [
        *((0, 1), (0, 2)),
        *((1, 1), (1, 2)),
    ]
    assert [(b.block_index, b.denoising_steps) for b in at.blocks("a")] == [(0, 2), (1, 2)]
    assert at.drafts("a")[1].token_ids == at.blocks("a")[0].delta.token_ids


@pytest.mark.parametrize("stream", [StreamMode.NONE, StreamMode.BLOCK])
def test_only_requests_that_stream_drafts_get_them(stream: StreamMode) -> None:
    at = desk()
    at.submit(request("a", stream=stream, max_new_tokens=2 * L))
    at.run()
    assert [type(event) for event in at.heard["a"]] == [Block, Block, Finished]


def test_a_stop_id_ends_the_answer_without_another_canvas() -> None:
    at = desk(wish=lambda context: [*to_ids("abc"), *[EOS] * (L - 3)])
    at.submit(request("a", max_new_tokens=4 * L))
    at.run()
    assert at.reason("a") == "stop"
    assert at.ids("a") == to_ids("abc")
    assert modes(at.engine.passes) == ["ed", "d"]


def test_the_last_canvas_is_truncated() -> None:
    at = desk()
    at.submit(request("a", max_new_tokens=L + 3))
    at.run()
    usage = at.usage("a")
    assert (usage.completion_tokens, usage.committed_tokens) == (L + 3, 2 * L)
    assert len(at.ids("a")) == L + 3


def test_usage_says_what_the_request_was_and_cost() -> None:
    at = desk()
    at.submit(request("a", prompt="hello", seed=77, **fixed_steps(3, max_new_tokens=2 * L)))
    at.run()
    usage = at.usage("a")
    assert (usage.prompt_tokens, usage.completion_tokens, usage.seed) == (5, 2 * L, 77)
    assert (usage.denoising_steps, usage.cap_hits, usage.passes) == ((3, 3), 2, 6)
    assert len(usage.mean_entropy) == 2
    assert all(0 <= value < 0.005 for value in usage.mean_entropy)
    assert 0 <= usage.queue_ms <= usage.first_block_ms <= usage.total_ms


def test_time_in_the_queue_is_counted_until_a_slot_is_free() -> None:
    at = desk(slots=1)
    at.submit(request("a", **fixed_steps(4)), request("b"))
    at.run()
    assert at.usage("b").queue_ms >= at.usage("a").total_ms - at.usage("a").queue_ms
    assert at.usage("b").passes == 2
