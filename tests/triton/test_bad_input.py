"""Bad input to a real Triton server: a clear error for whoever sent it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from dgemma.client import RequestRejected, generate
from dgemma.triton_server.server import TritonServer
from tests.triton.raw import Answered, ask, ids_input, inputs, joined, stream, text_input
from tests.triton.servers import running

SEED = "sampling_parameters.seed"
CONTEXT = 1024


def sampled(**parameters: Any) -> list[triton.InferInput]:
    return inputs(text_input="x", sampling=parameters)


def raw_sampling(content: str | bytes) -> list[triton.InferInput]:
    return inputs(text_input="x", sampling=content)


def chat(*messages: Any) -> list[triton.InferInput]:
    return inputs(messages=json.dumps(messages))


# What is sent, and what its error has to say: the field first, then what is allowed.
UNSUITABLE: dict[str, tuple[list[triton.InferInput], str, str]] = {
    # Parameters
    "unknown parameter": (
        sampled(temperature=1),
        "sampling_parameters.temperature: unknown key",
        "known: max_new_tokens, max_denoising_steps, t_min, t_max, entropy_bound, stability_th",
    ),
    "ill-typed number": (sampled(seed="7"), f'{SEED}: got "7"', "0 to 2**63 - 1"),
    "ill-typed truth": (
        sampled(ignore_eos=1),
        "sampling_parameters.ignore_eos: got 1",
        "true or false",
    ),
    "null": (sampled(seed=None), f"{SEED}: got null", "0 to 2**63 - 1"),
    "seed below": (sampled(seed=-1), f"{SEED}: got -1", "0 to 2**63 - 1"),
    "seed above": (sampled(seed=2**63), f"{SEED}: got {2**63}", "0 to 2**63 - 1"),
    "no tokens": (
        sampled(max_new_tokens=0),
        "sampling_parameters.max_new_tokens: got 0",
        f"1 to max_model_len (here {CONTEXT})",
    ),
    "no steps": (
        sampled(max_denoising_steps=0),
        "sampling_parameters.max_denoising_steps: got 0",
        "1 to 1024",
    ),
    "too many steps": (
        sampled(max_denoising_steps=1025),
        "sampling_parameters.max_denoising_steps: got 1025",
        "1 to 1024",
    ),
    "temperature zero": (sampled(t_min=0), "sampling_parameters.t_min: got 0", "0 < t_min"),
    "temperature above": (sampled(t_max=101), "sampling_parameters.t_max: got 101", "<= 100"),
    "temperatures crossed": (
        sampled(t_min=0.9, t_max=0.5),
        "sampling_parameters.t_min: got t_min 0.9 above t_max 0.5",
        "t_min <= t_max",
    ),
    "entropy bound": (
        sampled(entropy_bound=0),
        "sampling_parameters.entropy_bound: got 0",
        "a finite number > 0",
    ),
    "stability": (
        sampled(stability_threshold=17),
        "sampling_parameters.stability_threshold: got 17",
        "0 to 16",
    ),
    "confidence": (
        sampled(confidence_threshold=-0.1),
        "sampling_parameters.confidence_threshold: got -0.1",
        ">= 0",
    ),
    "stop": (sampled(stop=["a", ""]), 'sampling_parameters.stop[1]: got ""', "1 to 256 char"),
    "preset": (
        sampled(preset="best"),
        'sampling_parameters.preset: got "best"',
        '"quality" or "fast"',
    ),
    "parameters that are a list": (
        raw_sampling("[1]"),
        "sampling_parameters: got an array",
        "a JSON object",
    ),
    "parameters that are no JSON": (
        raw_sampling('{"seed": 1,}'),
        "sampling_parameters: not JSON:",
        "line 1, column",
    ),
    "parameters with NaN": (
        raw_sampling('{"t_min": NaN}'),
        "sampling_parameters: not JSON that can be read: NaN",
        "not a JSON number",
    ),
    "parameters that are no UTF-8": (
        raw_sampling(b'{"seed": \xff}'),
        "sampling_parameters: byte 0xff at offset 9",
        "encode the text as UTF-8",
    ),
    # Prompts
    "no prompt": (
        inputs(sampling={"seed": 1}),
        "prompt: got none",
        "exactly one of text_input, messages, input_ids",
    ),
    "two prompts": (
        inputs(text_input="x", input_ids=[65]),
        "prompt: got text_input and input_ids",
        "exactly one of text_input, messages, input_ids",
    ),
    "three prompts": (
        inputs(text_input="x", messages="[]", input_ids=[65]),
        "prompt: got text_input and messages and input_ids",
        "exactly one of",
    ),
    "empty text": (inputs(text_input=""), "text_input: the prompt is empty", "at least one token"),
    "empty ids": ([ids_input([])], "input_ids: the prompt is empty", "at least one token"),
    "empty chat": (chat(), "messages: no messages", "a non-empty array"),
    "text that is no UTF-8": (
        inputs(text_input=b"ab\xff"),
        "text_input: byte 0xff at offset 2",
        "encode the text as UTF-8",
    ),
    "chat that is no JSON": (inputs(messages="hello"), "messages: not JSON:", "send one JSON"),
    "chat that is no UTF-8": (
        inputs(messages=b"[\xc3\x28]"),
        "messages: byte 0xc3 at offset 1",
        "encode the text as UTF-8",
    ),
    "role": (
        chat({"role": "wizard", "content": "x"}),
        'messages[0].role: got "wizard"',
        "allowed: system, developer, user",
    ),
    "image": (
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        "messages[0].content[0]: images are not served yet",
        "text parts only",
    ),
    "image token": (
        inputs(input_ids=[2, 16]),
        "input_ids: token 1 is the image token 16",
        "send text only",
    ),
    "token id above": (inputs(input_ids=[2, 320]), "input_ids[1]: got 320", "allowed: 0 to 319"),
    "token id below": (inputs(input_ids=[-1]), "input_ids[0]: got -1", "allowed: 0 to 319"),
    # Room
    "more tokens than the context": (
        sampled(max_new_tokens=CONTEXT + 1),
        f"sampling_parameters.max_new_tokens: got {CONTEXT + 1}",
        f"1 to max_model_len (here {CONTEXT})",
    ),
    "prompt and answer over the context": (
        inputs(text_input="x" * 1000, sampling={"max_new_tokens": 24}),
        "sampling_parameters.max_new_tokens: 1001 prompt tokens + 24 new tokens exceed max_model",
        "at most 23 tokens",
    ),
    "prompt over the context": (
        inputs(text_input="x" * 2000),
        "text_input: 2001 tokens leave no room",
        f"at most {CONTEXT - 1} tokens",
    ),
    # Templates
    "template over max_new_tokens": (
        inputs(text_input="x", canvas_template="abc<|gap:8|>", sampling={"max_new_tokens": 10}),
        "canvas_template: longer than max_new_tokens, which is 10 tokens",
        "shorten the template",
    ),
    "gap of nothing": (
        inputs(text_input="x", canvas_template="a<|gap:0|>"),
        "canvas_template: got a gap of 0",
        "1 to",
    ),
    "gap that is none": (
        inputs(text_input="x", canvas_template="a<|gap:x|>"),
        "canvas_template: malformed gap",
        "write <|gap:12|>",
    ),
    "empty template": (
        inputs(text_input="x", canvas_template=""),
        "canvas_template: empty",
        "leave it out",
    ),
    "template that is no UTF-8": (
        inputs(text_input="x", canvas_template=b"\xff"),
        "canvas_template: byte 0xff at offset 0",
        "encode the text as UTF-8",
    ),
    # Streams
    "stream mode": (
        inputs(text_input="x", stream="all"),
        'stream: got "all"',
        "none, block, draft",
    ),
}
# What Triton itself refuses, in its own words: the field, and what it expected.
MISSHAPEN: dict[str, tuple[list[triton.InferInput], str, str]] = {
    "two texts": ([text_input("text_input", "a", "b")], "'text_input'", "[1]"),
    "no text": ([text_input("text_input")], "'text_input'", "[1]"),
    "unknown input": ([*inputs(text_input="x"), text_input("top_k", "1")], "'top_k'", ""),
    "text where ids belong": ([text_input("input_ids", "1")], "'input_ids'", "INT32"),
}
BAD = UNSUITABLE | MISSHAPEN
BESIDE = inputs(
    text_input="the request beside",
    stream="draft",
    sampling={
        "max_new_tokens": 96,
        "max_denoising_steps": 1000,
        "confidence_threshold": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
        "seed": 5,
    },
)


@pytest.fixture(scope="module")
def alone(url: str) -> list[Answered]:
    return ask(url, BESIDE)


@pytest.fixture
def beside(url: str, alone: list[Answered]) -> Iterator[None]:
    """A request that runs meanwhile and must notice nothing."""
    with stream(url) as opened:
        opened.send(BESIDE)
        responses = [opened.answer()]
        yield
        responses += [opened.answer() for _ in range(opened.heard())]
        assert not responses[-1].final, "it was to run all the time"
        while not responses[-1].final:
            responses.append(opened.answer())
    assert joined(responses) == joined(alone)
    assert len(responses) == len(alone)


def refused(url: str, tensors: list[triton.InferInput]) -> Any:
    """The error that comes instead of any response."""
    with stream(url) as opened:
        opened.send(tensors)
        reply = opened.receive()
    assert isinstance(reply, InferenceServerException)
    return reply


@pytest.mark.parametrize("what", UNSUITABLE)
def test_the_error_names_the_field_and_what_is_allowed(url: str, what: str) -> None:
    tensors, field, allowed = UNSUITABLE[what]
    message = refused(url, tensors).message()
    assert message.startswith(f"[INVALID_ARGUMENT] {field}")
    assert allowed in message


@pytest.mark.parametrize("what", MISSHAPEN)
def test_what_triton_itself_refuses_is_named_too(url: str, what: str) -> None:
    tensors, field, expected = MISSHAPEN[what]
    message = refused(url, tensors).message()
    assert field in message
    assert expected in message


def test_the_requests_beside_bad_ones_go_on(url: str, beside: None) -> None:
    for tensors, _, _ in BAD.values():
        refused(url, tensors)


def test_bad_requests_do_not_disturb_others_on_the_same_stream(
    url: str, alone: list[Answered]
) -> None:
    with stream(url) as opened:
        opened.send(BESIDE, "good")
        responses, errors = [opened.answer()], []
        for tensors, _, _ in UNSUITABLE.values():
            opened.send(tensors, "bad")
        while not responses[-1].final:
            reply = opened.receive()
            if isinstance(reply, Answered):
                responses.append(reply)
            else:
                errors.append(reply.message())
    assert {response.request_id for response in responses} == {"good"}
    assert joined(responses) == joined(alone)
    expected = sorted(field for _, field, _ in UNSUITABLE.values())
    matched = [f for f in expected if any(f in message for message in errors)]
    assert matched == expected
    assert len(errors) == len(expected)


@pytest.fixture
def own_server(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> Iterator[TritonServer]:
    with running(model_repository, demo_environment, tmp_path / "log") as server:
        yield server


def test_the_server_survives_many_bad_requests_of_the_client_library(
    own_server: TritonServer,
) -> None:
    for _ in range(400):
        with pytest.raises(RequestRejected) as caught:
            generate("x", url=own_server.grpc_url, max_new_tokens=0)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert "sampling_parameters.max_new_tokens: got 0; allowed: " in caught.value.message
    own_server.check()
