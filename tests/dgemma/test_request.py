from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from dgemma.chat import ChatTokenizer
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma.request import FREE, RawRequest, Request, RequestParser, StreamMode
from dgemma_build.demo.vocabulary import (
    BOS,
    EOS,
    IMAGE,
    VOCAB_SIZE,
    build_tokenizer,
    chat_prompt,
    to_ids,
)
from tests.tiny_checkpoint import DEFAULTS, byte_tokenizer

SEED = 1234
TOKENIZER = byte_tokenizer()
CANVAS, LIMIT = 16, 200
HELLO = json.dumps([{"role": "user", "content": "hello"}]).encode()


def parser(**overrides: Any) -> RequestParser:
    settings: dict[str, Any] = {
        "defaults": DEFAULTS,
        "tokenizer": TOKENIZER,
        "vocab_size": VOCAB_SIZE,
        "canvas_length": CANVAS,
        "max_model_len": LIMIT,
        "image_token_ids": frozenset({IMAGE}),
        "draw_seed": lambda: SEED,
    }
    return RequestParser(**settings | overrides)


PARSER = parser()


def parse(raw: RawRequest) -> Request:
    return PARSER.parse(raw, "r1")


def ask(template: str | None = None, prompt: int = 1, **parameters: Any) -> Request:
    return parse(
        RawRequest(
            input_ids=[70] * prompt,
            canvas_template=None if template is None else template.encode(),
            sampling_parameters=json.dumps(parameters).encode(),
        )
    )


def refusal(raw: RawRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(raw)
    return caught.value


# Prompts


def test_raw_text_gets_a_bos_in_front() -> None:
    request = parse(RawRequest(text_input="hé <eos>".encode()))
    assert request.prompt == (BOS, *to_ids("hé "), EOS)


def test_raw_text_that_begins_with_bos_is_left_as_it_is() -> None:
    assert parse(RawRequest(text_input=b"<bos>a")).prompt == (BOS, *to_ids("a"))


def test_messages_are_rendered_by_the_chat_template() -> None:
    assert parse(RawRequest(messages=HELLO)).prompt == tuple(chat_prompt("hello"))


def test_messages_may_carry_template_variables() -> None:
    chat = {"messages": json.loads(HELLO), "chat_template_kwargs": {"enable_thinking": True}}
    request = parse(RawRequest(messages=json.dumps(chat).encode()))
    assert TOKENIZER.encode("<|think|>")[0] in request.prompt


def test_template_variables_of_any_name_break_nothing() -> None:
    kwargs = {"self": 1, "bos_token": "", "1 2": None}
    chat = {"messages": json.loads(HELLO), "chat_template_kwargs": kwargs}
    request = parse(RawRequest(messages=json.dumps(chat).encode()))
    assert request.prompt == tuple(chat_prompt("hello"))


def test_token_ids_are_verbatim() -> None:
    assert parse(RawRequest(input_ids=[5, 4, 319])).prompt == (5, 4, 319)


def test_what_is_left_out_is_filled_in() -> None:
    request = parse(RawRequest(input_ids=[70]))
    assert (request.id, request.stream, request.pinned) == ("r1", StreamMode.BLOCK, None)
    assert request.sampling.seed == SEED
    assert request.sampling.max_new_tokens == DEFAULTS.max_new_tokens


def test_a_seed_is_drawn_for_each_request() -> None:
    drawing = RequestParser(
        DEFAULTS,
        TOKENIZER,
        vocab_size=VOCAB_SIZE,
        canvas_length=CANVAS,
        max_model_len=LIMIT,
        image_token_ids=frozenset(),
    )
    seeds = {drawing.parse(RawRequest(input_ids=[70]), "r").sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_given_seed_is_kept() -> None:
    assert ask(seed=0).sampling.seed == 0


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        (RawRequest(), "prompt", "got none; allowed: exactly one of text_input, messages"),
        (
            RawRequest(text_input=b"a", messages=HELLO),
            "prompt",
            "got text_input and messages; allowed: exactly one",
        ),
        (
            RawRequest(text_input=b"a", messages=HELLO, input_ids=[1]),
            "prompt",
            "got text_input and messages and input_ids",
        ),
        (RawRequest(text_input=b""), "text_input", "the prompt is empty"),
        (RawRequest(input_ids=[]), "input_ids", "the prompt is empty"),
        (RawRequest(text_input=b"a\xff"), "text_input", "byte 0xff at offset 1 is not UTF-8"),
        (RawRequest(messages=b"\xff"), "messages", "not UTF-8"),
        (RawRequest(messages=b"[{]"), "messages", "not JSON: .* at line 1, column 3"),
        (RawRequest(messages=b"[]"), "messages", "no messages"),
        (
            RawRequest(messages=b'[{"role": "user", "content": "ab\\ud800"}]'),
            "messages",
            r'character \d+ is an unpaired surrogate \("\\ud800"\)',
        ),
        (RawRequest(input_ids=[70, 320]), "input_ids[1]", "got 320; allowed: 0 to 319"),
        (RawRequest(input_ids=[70, 71, -1]), "input_ids[2]", "got -1; allowed: 0 to 319"),
        (RawRequest(input_ids=[70, IMAGE]), "input_ids", "token 1 is the image token 16"),
        (RawRequest(text_input=b"<|image|>"), "text_input", "images are not served yet"),
        (
            RawRequest(messages=HELLO.replace(b"hello", b"<|image|>")),
            "messages",
            "images are not served yet",
        ),
        (RawRequest(input_ids=[70], stream=b"word"), "stream", '"word"; allowed: none, block, dr'),
        (RawRequest(input_ids=[70], stream=b""), "stream", 'got ""; allowed: none, block, draft'),
        (RawRequest(input_ids=[70], stream=b"\xff"), "stream", "not UTF-8"),
        (
            RawRequest(input_ids=[70], sampling_parameters=b"{"),
            "sampling_parameters",
            "not JSON: .* line 1, column 2",
        ),
        (
            RawRequest(input_ids=[70], canvas_template=b"\xc3"),
            "canvas_template",
            "byte 0xc3 at offset 0 is not UTF-8",
        ),
        (RawRequest(input_ids=[70], canvas_template=b""), "canvas_template", "empty"),
    ],
)
def test_a_bad_request_is_refused_at_its_field(raw: RawRequest, field: str, message: str) -> None:
    error = refusal(raw)
    assert error.field == field
    assert error.grpc_code == "INVALID_ARGUMENT"
    assert re.search(message, str(error))


def test_priority_and_deadline_are_the_requests_own() -> None:
    asked = ask(priority=-3, deadline_s=2.5)
    assert (asked.priority, asked.deadline_s) == (-3, 2.5)
    assert (ask().priority, ask().deadline_s) == (None, None)


@pytest.mark.parametrize("mode", list(StreamMode))
def test_stream_modes(mode: StreamMode) -> None:
    assert parse(RawRequest(input_ids=[70], stream=mode.encode())).stream is mode


def test_messages_without_a_chat_template() -> None:
    plain = parser(tokenizer=ChatTokenizer(build_tokenizer()))
    with pytest.raises(InvalidRequest, match="messages: this checkpoint has no chat template"):
        plain.parse(RawRequest(messages=HELLO), "r")


# Room


def test_the_default_is_clipped_to_what_fits() -> None:
    assert ask(prompt=150).sampling.max_new_tokens == 50
    assert ask(prompt=199).sampling.max_new_tokens == 1


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"200 tokens leave no room .* at most 199") as caught:
        ask(prompt=200)
    assert caught.value.field == "input_ids"


def test_an_explicit_length_must_fit() -> None:
    assert ask(prompt=150, max_new_tokens=50).sampling.max_new_tokens == 50
    with pytest.raises(InvalidRequest) as caught:
        ask(prompt=150, max_new_tokens=51)
    assert caught.value.field == "sampling_parameters.max_new_tokens"
    assert "150 prompt tokens + 51 new tokens exceed max_model_len 200" in str(caught.value)
    assert "at most 50 tokens" in str(caught.value)


# Templates


def test_a_template_sets_the_length_of_the_answer() -> None:
    request = ask("ab<|gap:3|>")
    assert request.sampling.max_new_tokens == 5
    assert request.pinned == (*to_ids("ab"), *[FREE] * 3, *[EOS] * 11)


def test_a_template_may_span_canvases() -> None:
    request = ask("<|gap:20|>x")
    assert request.pinned == (*[FREE] * 20, *to_ids("x"), *[EOS] * 11)


def test_an_answer_that_may_be_longer_than_its_template_ends_with_it() -> None:
    request = ask("x" * CANVAS, max_new_tokens=CANVAS + 1)
    assert request.pinned == (*to_ids("x" * CANVAS), *[EOS] * CANVAS)
    assert request.sampling.max_new_tokens == CANVAS + 1


def test_a_template_longer_than_max_new_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="longer than max_new_tokens, which is 4") as caught:
        ask("ab<|gap:3|>", max_new_tokens=4)
    assert caught.value.field == "canvas_template"


def test_a_template_must_fit_behind_the_prompt() -> None:
    with pytest.raises(InvalidRequest, match=r"150 prompt tokens . 60 new tokens exceed") as caught:
        ask("<|gap:60|>", prompt=150)
    assert caught.value.field == "canvas_template"


def test_a_template_longer_than_the_context_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="longer than max_model_len, which is 200"):
        ask("<|gap:200|>x")


def test_ids_that_the_parser_writes_must_exist() -> None:
    with pytest.raises(ConfigurationError, match="bos_token_id: got 2; allowed: 0 to 1"):
        parser(vocab_size=2)
    elsewhere = replace(DEFAULTS, eos_token_ids=(320,))
    with pytest.raises(ConfigurationError, match="eos_token_id: got 320; allowed: 0 to 319"):
        parser(defaults=elsewhere)
