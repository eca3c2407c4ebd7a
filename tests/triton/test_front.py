"""The HTTP front before a real Triton server, spoken to by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion

from dgemma.client import Client
from dgemma.front.server import running
from dgemma.front.settings import FrontSettings
from dgemma.triton_server.server import TritonServer
from dgemma_build.demo.prompts import count_prompt
from tests.triton.test_contract import PROMPT as RAW_PROMPT

MODEL = "dgemma-demo"
MESSAGES: Any = [{"role": "user", "content": count_prompt(60)}]
COUNTED = " ".join(f"{number:02}" for number in range(60, 100))
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def front(server: TritonServer, demo_engine: Path) -> Iterator[str]:
    settings = FrontSettings.load(
        triton_url=server.grpc_url,
        triton_metrics_url=server.metrics_url,
        host="127.0.0.1",
        port=0,
        served_model_name=MODEL,
        models=demo_engine,
        ready_timeout_s=20.0,
    )
    with running(settings) as front:
        yield front.url


@pytest.fixture(scope="module")
def client(front: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front}/v1", api_key="sk-1", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(front: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=front, timeout=60) as client:
        yield client


def pinned(text: str, **fields: Any) -> dict[str, Any]:
    """A chat whose answer is known whatever the network says."""
    return {"model": MODEL, "messages": MESSAGES, "extra_body": {"canvas_template": text}, **fields}


# Answers


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=5)
    ChatCompletion.model_validate(answer.model_dump())
    assert answer.choices[0].message.content == COUNTED
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(COUNTED)
    told: Any = answer
    assert told.dgemma["seed"] == 5
    assert told.dgemma["passes"] >= len(told.dgemma["denoising_steps"]) == 2


def test_a_chat_as_a_stream_is_the_same_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    for chunk in [*chunks, last]:
        ChatCompletionChunk.model_validate(chunk.model_dump())
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == COUNTED
    assert len(list(filter(None, texts))) == 2  # canvases
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert last.usage is not None
    assert last.usage.completion_tokens == len(COUNTED)


def test_settings_under_their_own_names(client: openai.OpenAI) -> None:
    answer: Any = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_completion_tokens=200,
        stop=["impossible"],
        extra_body={"preset": "fast", "max_denoising_steps": 4, "ignore_eos": True},
    )
    assert answer.dgemma["denoising_steps"] == [4, 4, 4]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 200


def test_a_completion_is_what_the_light_client_gets(client: openai.OpenAI, url: str) -> None:
    settings: Any = {"model": MODEL, "prompt": RAW_PROMPT, "seed": 3, "max_tokens": 40}
    answer = client.completions.create(**settings, stop="zz")
    Completion.model_validate(answer.model_dump())
    with Client(url) as light:
        expected = light.generate(RAW_PROMPT, seed=3, max_new_tokens=40, stop="zz")
    assert answer.choices[0].text == expected.text
    streamed = client.completions.create(**settings, stop="zz", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected.text


def test_a_stop_string_ends_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, stop=[" 65"])
    assert answer.choices[0].message.content == COUNTED.partition(" 65")[0]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_and_calls_come_apart(client: openai.OpenAI, stream: bool) -> None:
    text = (
        "<|channel>thought\nIs it raining?<channel|>I look."
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>,days:2}<tool_call|>'
    )
    asked = pinned(text, tools=[WEATHER], stream=stream)
    if stream:
        deltas: list[Any] = [c.choices[0].delta for c in client.chat.completions.create(**asked)]
        thought = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
        [call] = [call for delta in deltas for call in delta.tool_calls or ()]
    else:
        message: Any = client.chat.completions.create(**asked).choices[0].message
        thought, content, [call] = message.reasoning_content, message.content, message.tool_calls
    assert (thought, content) == ("Is it raining?", "I look.")
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Rome", "days": 2}


def test_thinking_and_tools_reach_the_chat_template(client: openai.OpenAI) -> None:
    def prompt_tokens(**fields: Any) -> int:
        answer = client.chat.completions.create(**pinned("x", **fields))
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    thinking = {"canvas_template": "x", "chat_template_kwargs": {"enable_thinking": True}}
    plain = prompt_tokens()
    assert prompt_tokens(extra_body=thinking) > plain
    assert prompt_tokens(tools=[WEATHER]) > plain + len(json.dumps(WEATHER["function"])) // 2
    assert prompt_tokens(tools=[WEATHER], tool_choice="none") == plain


def test_infill_keeps_what_is_pinned(http: httpx2.Client) -> None:
    template = "a = [<|gap:3|>]\n"
    fields = {"messages": MESSAGES, "canvas_template": template, "max_denoising_steps": 2}
    answer = http.post("/v1/infill", json=fields).json()
    text = answer["choices"][0]["text"]
    assert text.startswith("a = [")
    assert text.endswith("]\n")


def test_drafts_show_the_canvas_at_every_step(http: httpx2.Client) -> None:
    fields = {"messages": MESSAGES, "stream": "draft", "max_denoising_steps": 3}
    lines = http.post("/v1/chat/completions", json=fields).text.split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    drafts = [event["draft"] for event in events if "draft" in event]
    [usage] = [event["dgemma"] for event in events if "dgemma" in event]
    assert len(drafts) == sum(usage["denoising_steps"])
    assert all(len(draft["states"]) == len(draft["text"]) for draft in drafts)


# Errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": -1}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"extra_body": {"t_min": 0}}, "t_min"),
        ({"extra_body": {"canvas_template": "<|gap:x|>"}}, "canvas_template"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"n": 2}, "n"),
    ],
)
def test_a_refusal_names_the_field(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})
    assert raised.value.param == param
    assert raised.value.message


def test_a_template_that_knows_no_calls_says_so(client: openai.OpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="the chat template refused them"):
        client.chat.completions.create(model=MODEL, messages=history)


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    assert raised.value.code == "model_not_found"


def test_a_stream_may_be_left(client: openai.OpenAI, http: httpx2.Client) -> None:
    endless = {"max_denoising_steps": 1024, "confidence_threshold": 0.0, "ignore_eos": True}
    for _ in range(10):  # more than there are slots
        with client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            stream=True,
            extra_body={**endless, "stream": "draft"},
        ) as stream:
            next(iter(stream))
    assert client.chat.completions.create(**pinned("x")).choices[0].message.content == "x"


# What else is said


def test_the_service_is_ready_and_says_what_it_is(http: httpx2.Client, demo_engine: Path) -> None:
    assert http.get("/v1/health/ready").json()["status"] == "ready"
    assert http.get("/v1/models").json()["data"][0]["id"] == MODEL
    manifest = http.get("/v1/manifest").json()["manifest_file"]
    assert manifest == (demo_engine / "manifest.json").read_text()
    page = http.get("/v1/metrics").text
    assert "dgemma_http_triton_metrics_up 1" in page
    assert 'nv_inference_request_success{model="diffusion_gemma"' in page
    profile = http.get("/v1/metadata").json()["selectedModelProfileId"]
    assert (f'id="{profile}"' in page) == bool(profile)
