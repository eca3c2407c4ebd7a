from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest

from dgemma.errors import EngineFailure
from dgemma.reply import Reply, Response
from dgemma.request import StreamMode
from dgemma.scheduler.events import Event
from tests.dgemma.hand_made import SAMPLING, USAGE, annotate, block, draft, finished, request

EVENTS: list[Event] = [
    draft(0, 1),
    draft(0, 2),
    block("ab", 1, 2, block_index=0, steps=2),
    draft(1, 1),
    block("c", 3, block_index=1, steps=3),
    finished("length"),
]
USAGE_JSON = USAGE.to_json()


def responses(stream: StreamMode, *, token_ids: bool = True) -> list[Response]:
    sampling = replace(SAMPLING, return_token_ids=token_ids)
    reply = Reply(request(stream=stream, sampling=sampling), annotate)
    return [answer for event in EVENTS if (answer := reply.response(event)) is not None]


def test_block_mode_has_a_response_for_each_block_and_one_for_the_end() -> None:
    assert responses(StreamMode.BLOCK) == [
        Response("block", "ab", (1, 2), block_index=0, denoising_step=2),
        Response("block", "c", (3,), block_index=1, denoising_step=3),
        Response("final", "", (), "length", 1, 3, USAGE_JSON),
    ]


def test_draft_mode_has_the_provisional_canvases_as_well() -> None:
    drafts = [
        Response("draft", "hij", (7, 8, 9), "", index, step, "", (0, 1, 2))
        for index, step in [(0, 1), (0, 2), (1, 1)]
    ]
    first, second, final = responses(StreamMode.BLOCK)
    assert responses(StreamMode.DRAFT) == [*drafts[:2], first, drafts[2], second, final]


def test_one_response_holds_everything_where_no_stream_was_asked_for() -> None:
    assert responses(StreamMode.NONE) == [
        Response("final", "abc", (1, 2, 3), "length", 1, 3, USAGE_JSON)
    ]


@pytest.mark.parametrize("stream", StreamMode)
def test_the_texts_and_token_ids_of_blocks_and_final_joined_are_the_answer(
    stream: StreamMode,
) -> None:
    parts = [part for part in responses(stream) if part.kind != "draft"]
    assert "".join(part.text_output for part in parts) == "abc"
    assert [token_id for part in parts for token_id in part.token_ids] == [1, 2, 3]


@pytest.mark.parametrize("stream", StreamMode)
def test_token_ids_come_only_where_they_were_asked_for(stream: StreamMode) -> None:
    silent = responses(stream, token_ids=False)
    assert all(response.token_ids == () for response in silent)
    assert silent == [replace(response, token_ids=()) for response in responses(stream)]


@pytest.mark.parametrize("stream", StreamMode)
def test_the_bill_and_the_reason_are_on_the_final_response_alone(stream: StreamMode) -> None:
    *others, final = responses(stream)
    everything = json.loads(json.dumps(asdict(USAGE)))
    assert everything.pop("simulated") is None  # said only where something was
    assert json.loads(final.usage) == everything
    assert final.finish_reason == "length"
    assert {(other.usage, other.finish_reason) for other in others} <= {("", "")}


def test_an_answer_that_ends_before_its_first_block_is_empty() -> None:
    reply = Reply(request(), annotate)
    assert reply.response(finished("cancelled")) == Response(
        "final", "", (), "cancelled", 0, 0, USAGE_JSON
    )


@pytest.mark.parametrize("stream", StreamMode)
def test_a_request_that_ended_with_an_error_raises_it(stream: StreamMode) -> None:
    reply, error = Reply(request(stream=stream), annotate), EngineFailure("broken")
    reply.response(block("ab", 1, 2))
    with pytest.raises(EngineFailure) as caught:
        reply.response(finished("error", error))
    assert caught.value is error


def test_drafts_that_nobody_reads_are_not_detokenised() -> None:
    def never(ids: Sequence[int], states: Sequence[int]) -> tuple[str, list[int]]:
        raise AssertionError("nobody asked for drafts")

    assert Reply(request(stream=StreamMode.BLOCK), never).response(draft()) is None
