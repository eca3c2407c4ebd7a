"""`/v1/completions` and `/v1/infill`, and what all streams have in common."""

from __future__ import annotations

import json
from typing import Any

import grpc
import httpx2
import pytest

from tests.dgemma.fake_triton import USAGE, failure, inputs, response
from tests.dgemma.front.conftest import Stage
from tests.dgemma.front.replies import COMPLETIONS, INFILL, USER, chunks, error_of

GAP = "def f(x):<|gap:8|>"


@pytest.mark.parametrize(
    ("prompt", "tensors"),
    [
        ("once", {"text_input": "once"}),
        (["once"], {"text_input": "once"}),
        ("", {"text_input": ""}),
        ([5, 6, 7], {"input_ids": [5, 6, 7]}),
        ([[5, 6, 7]], {"input_ids": [5, 6, 7]}),
    ],
)
def test_a_prompt_is_a_text_or_token_ids(
    http: httpx2.Client, stage: Stage, prompt: Any, tensors: dict[str, Any]
) -> None:
    body = http.post(COMPLETIONS, json={"prompt": prompt}).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "Hello, world"
    assert inputs(stage.fake.requests[0]) == {**tensors, "stream": "block"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "messages": USER}, "messages"),
    ],
)
def test_what_a_completion_cannot_be_is_refused(
    http: httpx2.Client, stage: Stage, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(COMPLETIONS, json=fields)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert stage.fake.requests == []


@pytest.mark.parametrize("prompt", [{"prompt": "p"}, {"messages": USER}])
def test_infill_sends_a_template_with_any_prompt(
    http: httpx2.Client, stage: Stage, prompt: dict[str, Any]
) -> None:
    body = http.post(INFILL, json={**prompt, "canvas_template": GAP, "seed": 3}).json()
    assert body["choices"][0]["text"] == "Hello, world"
    sent = inputs(stage.fake.requests[0])
    assert sent["canvas_template"] == GAP
    assert json.loads(sent["sampling_parameters"]) == {"seed": 3}
    assert sent.get("text_input") == prompt.get("prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "p"}, "canvas_template"),
        ({"canvas_template": GAP}, "prompt"),
        ({"canvas_template": GAP, "prompt": "p", "messages": USER}, "prompt"),
        (
            {"canvas_template": GAP, "prompt": "p", "chat_template_kwargs": {}},
            "chat_template_kwargs",
        ),
    ],
)
def test_infill_needs_a_template_and_one_prompt(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(INFILL, json=fields)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


# Streams


def test_a_stream_brings_a_chunk_a_block_and_its_usage_last(http: httpx2.Client) -> None:
    options = {"include_usage": True}
    fields = {"prompt": "p", "stream": True, "stream_options": options}
    *texts, end, usage = chunks(http.post(COMPLETIONS, json=fields))
    assert [c["choices"][0]["text"] for c in texts] == ["Hello,", " world"]
    assert end["choices"][0] == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert end["dgemma"] == USAGE
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == USAGE["completion_tokens"]
    assert {c["usage"] for c in [*texts, end]} == {None}
    assert len({(c["id"], c["created"], c["model"]) for c in [*texts, end, usage]}) == 1


def test_without_being_asked_for_usage_is_not_in_a_stream(http: httpx2.Client) -> None:
    events = chunks(http.post(COMPLETIONS, json={"prompt": "p", "stream": True}))
    assert not any("usage" in event for event in events)


def test_drafts_come_between_the_blocks_on_request(http: httpx2.Client, stage: Stage) -> None:
    events = chunks(http.post(COMPLETIONS, json={"prompt": "p", "stream": "draft"}))
    assert inputs(stage.fake.requests[0])["stream"] == "draft"
    drafts = [event["draft"] for event in events if "draft" in event]
    assert drafts[0] == {
        "text": "He\nxo,",
        "states": [1, 1, 0, 0, 0, 2],
        "block_index": 0,
        "denoising_step": 1,
    }
    assert [(d["block_index"], d["denoising_step"]) for d in drafts] == [
        *((0, 1), (0, 2)),
        *((1, 1), (1, 2)),
    ]
    assert all(event["choices"] == [] for event in events if "draft" in event)


def test_an_error_before_the_first_event_is_a_status(http: httpx2.Client, stage: Stage) -> None:
    stage.play(failure(grpc.StatusCode.UNAUTHENTICATED, "no API key came"))
    answer = http.post(COMPLETIONS, json={"prompt": "p", "stream": True})
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_api_key"


def test_an_error_in_the_midst_of_a_stream_is_an_event(http: httpx2.Client, stage: Stage) -> None:
    before = (response("block", "Hello"),)
    stage.play(failure(grpc.StatusCode.UNAVAILABLE, "stopping", after=before))
    first, error = chunks(http.post(COMPLETIONS, json={"prompt": "p", "stream": True}))
    assert first["choices"][0]["text"] == "Hello"
    assert error["error"]["message"] == "stopping"
    assert error["error"]["type"] == "server_error"
