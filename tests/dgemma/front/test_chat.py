"""`/v1/chat/completions`: what is sent to the service, and what becomes of its answer."""

from __future__ import annotations

import json
from typing import Any

import grpc
import httpx2
import pytest

from tests.dgemma.fake_triton import USAGE, failure, inputs
from tests.dgemma.front.conftest import Stage
from tests.dgemma.front.replies import CHAT, USER, chunks, error_of, one_after_another, saying

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
BROKEN = "<|tool_call>call:weather{city:<tool_call|>"
UNFINISHED = "<|tool_call>call:weather{city:"


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post(CHAT, json={"messages": USER, **fields})


def sent(stage: Stage, index: int = -1) -> dict[str, Any]:
    """The inputs of a request that arrived; those that are JSON, parsed."""
    tensors = inputs(stage.fake.requests[index])
    for name in ("messages", "sampling_parameters"):
        if name in tensors:
            tensors[name] = json.loads(tensors[name])
    return tensors


def message(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    result: dict[str, Any] = choice["message"]
    return result


# What is sent


def test_messages_go_as_they_came_and_the_text_keeps_its_tags(
    http: httpx2.Client, stage: Stage
) -> None:
    assert message(ask(http))["content"] == "Hello, world"
    assert sent(stage) == {
        "messages": USER,
        "stream": "block",
        "sampling_parameters": {"return_tags": True},
    }


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
def test_sampling_parameters_go_under_the_service_s_names(
    http: httpx2.Client, stage: Stage, name: str
) -> None:
    ours: dict[str, Any] = {
        "seed": 7,
        "stop": ["a"],
        "preset": "fast",
        "ignore_eos": True,
        "t_min": 0.5,
        "t_max": 0.6,
        "entropy_bound": 0.2,
        "stability_threshold": 2,
        "priority": 0,
        "confidence_threshold": 0.1,
        "max_denoising_steps": 4,
        "deadline_s": 60,
    }
    ask(http, **ours, **{name: 9}, user="somebody", temperature=1, top_p=1.0, n=1, logprobs=None)
    expected = {**ours, "max_new_tokens": 9, "return_tags": True}
    assert sent(stage)["sampling_parameters"] == expected


def test_tools_and_template_variables_go_with_the_messages(
    http: httpx2.Client, stage: Stage
) -> None:
    ask(http, tools=[WEATHER], chat_template_kwargs={"enable_thinking": True})
    assert sent(stage)["messages"] == {
        "messages": USER,
        "tools": [WEATHER],
        "chat_template_kwargs": {"enable_thinking": True},
    }
    ask(http, tools=[WEATHER], tool_choice="none")
    assert sent(stage)["messages"] == USER


def test_the_arguments_of_earlier_calls_go_as_objects(http: httpx2.Client, stage: Stage) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ask(http, messages=[*USER, {"role": "assistant", "content": None, "tool_calls": [call]}])
    [_, assistant] = sent(stage)["messages"]
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}


def test_a_template_goes_with_a_chat(http: httpx2.Client, stage: Stage) -> None:
    ask(http, canvas_template="a<|gap:3|>")
    assert sent(stage)["canvas_template"] == "a<|gap:3|>"


# What comes back


def test_the_answer_has_usage_and_what_the_service_says_of_it(http: httpx2.Client) -> None:
    body = ask(http, model="other/name").json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "diffusion"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == USAGE["prompt_tokens"] + USAGE["completion_tokens"]
    assert body["dgemma"] == USAGE


@pytest.mark.parametrize("cut", [1, 5, 100])
@pytest.mark.parametrize("stream", [False, True])
def test_thinking_stands_apart(http: httpx2.Client, stage: Stage, cut: int, stream: bool) -> None:
    text = "<|channel>thought\nTwo and two.<channel|>Four."
    stage.play(saying(*(text[i : i + cut] for i in range(0, len(text), cut))))
    response = ask(http, stream=stream)
    if stream:
        deltas = [c["choices"][0]["delta"] for c in chunks(response)]
        thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
        content = "".join(delta.get("content", "") for delta in deltas)
    else:
        answer = message(response)
        thought, content = answer["reasoning_content"], answer["content"]
    assert (thought, content) == ("Two and two.", "Four.")


def test_an_empty_thought_is_none(http: httpx2.Client, stage: Stage) -> None:
    stage.play(saying("<|channel>thought\n<channel|>Four."))
    answer = message(ask(http))
    assert answer["content"] == "Four."
    assert "reasoning_content" not in answer


# Tool calls


def called(response: httpx2.Response, stream: bool) -> tuple[list[tuple[str, str]], str, str]:
    """Name and arguments of each call, the content, and the finish reason."""
    if not stream:
        answer = message(response)
        calls, content = answer.get("tool_calls", []), answer["content"] or ""
        reason = response.json()["choices"][0]["finish_reason"]
    else:
        choices = [c["choices"][0] for c in chunks(response)]
        calls = [call for c in choices for call in c["delta"].get("tool_calls", [])]
        assert [call["index"] for call in calls] == list(range(len(calls)))
        content = "".join(c["delta"].get("content", "") for c in choices)
        [reason] = [c["finish_reason"] for c in choices if c["finish_reason"]]
    assert len({call["id"] for call in calls}) == len(calls)
    named = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    return named, content, reason


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_parsed(http: httpx2.Client, stage: Stage, stream: bool) -> None:
    text = "Let me look." + CALL + CALL.replace("Rome", "Oslo")
    stage.play(saying(text[:20], text[20:50], text[50:]))
    response = ask(http, tools=[WEATHER], stream=stream)
    assert called(response, stream) == (
        [("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')],
        "Let me look.",
        "tool_calls",
    )
    assert len(stage.fake.requests) == 1


def test_only_the_first_call_counts_where_one_is_wanted(http: httpx2.Client, stage: Stage) -> None:
    stage.play(saying(CALL + BROKEN))
    response = ask(http, tools=[WEATHER], parallel_tool_calls=False)
    assert called(response, False)[0] == [("weather", '{"city": "Rome"}')]


def test_tags_of_calls_are_text_where_there_are_no_tools(http: httpx2.Client, stage: Stage) -> None:
    stage.play(saying("<|tool_call>call:f{}<tool_call|>"))
    assert message(ask(http))["content"] == "<|tool_call>call:f{}<tool_call|>"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mistake", [BROKEN, UNFINISHED, CALL.replace("weather", "rm")])
def test_a_malformed_call_is_asked_for_once_more_with_another_seed(
    http: httpx2.Client, stage: Stage, mistake: str, stream: bool
) -> None:
    stage.play(one_after_another(saying(mistake), saying("Now:", CALL)))
    response = ask(http, tools=[WEATHER], stream=stream)
    expected = ([("weather", '{"city": "Rome"}')], "Now:", "tool_calls")
    assert called(response, stream) == expected
    assert sent(stage)["sampling_parameters"]["seed"] == USAGE["seed"] + 1
    assert sent(stage, 0)["messages"] == sent(stage, 1)["messages"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_said_before_a_malformed_call_is_not_said_twice(
    http: httpx2.Client, stage: Stage, stream: bool
) -> None:
    stage.play(one_after_another(saying("First.", BROKEN), saying("Second.", CALL)))
    response = ask(http, tools=[WEATHER], stream=stream)
    assert called(response, stream)[:2] == ([("weather", '{"city": "Rome"}')], "First.")


def test_both_attempts_are_in_the_usage(http: httpx2.Client, stage: Stage) -> None:
    stage.play(one_after_another(saying(BROKEN), saying(CALL)))
    body = ask(http, tools=[WEATHER]).json()
    assert body["usage"]["completion_tokens"] == 2 * USAGE["completion_tokens"]
    assert body["usage"]["prompt_tokens"] == USAGE["prompt_tokens"]
    assert body["dgemma"]["denoising_steps"] == 2 * USAGE["denoising_steps"]


@pytest.mark.parametrize("second", [BROKEN, "just words"])
def test_a_second_malformed_call_is_an_error(
    http: httpx2.Client, stage: Stage, second: str
) -> None:
    stage.play(one_after_another(saying("Well.", BROKEN), saying(second)))
    response = ask(http, tools=[WEATHER])
    assert response.status_code == 502
    error = error_of(response)
    assert error["code"] == "malformed_tool_call"
    assert "no value at character 6" in error["message"]
    assert len(stage.fake.requests) == 2


def test_a_call_that_the_length_cut_off_is_left_out(http: httpx2.Client, stage: Stage) -> None:
    stage.play(saying(CALL + UNFINISHED, finish_reason="length"))
    response = ask(http, tools=[WEATHER])
    assert called(response, False) == ([("weather", '{"city": "Rome"}')], "", "length")


# What is refused


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": None}, "messages", "Field required"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": ["hi"]}, "messages[0]", "dictionary"),
        ({"tools": [{}]}, "tools[0]", "of the form"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tool_choice", "not supported"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "not supported"),
        ({"n": 2}, "n", "one answer"),
        ({"logprobs": True}, "logprobs", "no token has a probability"),
        ({"logprobs": 0}, "logprobs", "no token has a probability"),
        ({"top_logprobs": 3}, "top_logprobs", "no token has a probability"),
        ({"response_format": {"type": "json_object"}}, "response_format", "canvas_template"),
        ({"temperature": 0}, "temperature", "t_max to t_min"),
        ({"temperature": True}, "temperature", "t_max to t_min"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "not served"),
        ({"store": True}, "store", "nothing is stored"),
        ({"functions": []}, "functions", "tools"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"prompt": "hi"}, "prompt", "unknown field"),
        ({"stream": "yes"}, "stream", '"draft"'),
        ({"stream": 1}, "stream", '"draft"'),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream alone"),
        ({"stream": True, "stream_options": {"x": True}}, "stream_options.x", "include_usage"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "differs"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "not JSON",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(
    http: httpx2.Client, stage: Stage, fields: dict[str, Any], param: str, says: str
) -> None:
    response = ask(http, **fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]
    assert stage.fake.requests == []


@pytest.mark.parametrize(
    ("said", "fields", "param", "shown"),
    [
        ("sampling_parameters.seed: got -1", {}, "seed", "seed: got -1"),
        ("sampling_parameters.stop[3]: got 1", {}, "stop[3]", "stop[3]: got 1"),
        ("sampling_parameters.max_new_tokens: got 0", {"max_tokens": 0}, "max_tokens", "max_tok"),
        ("messages[0].role: got 1", {}, "messages[0].role", "messages[0].role"),
        ("messages.tools: allowed", {}, "tools", "tools: allowed"),
        ("messages: the chat template refused them", {}, "messages", "refused them"),
    ],
)
def test_the_service_s_errors_name_the_field_as_the_client_did(
    http: httpx2.Client, stage: Stage, said: str, fields: dict[str, Any], param: str, shown: str
) -> None:
    stage.play(failure(grpc.StatusCode.INVALID_ARGUMENT, said))
    error = error_of(ask(http, **fields))
    assert error["param"] == param
    assert error["message"].startswith(shown) or shown in error["message"]
