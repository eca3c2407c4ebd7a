from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.client_errors import RequestRejected, ServerFailure
from dgemma.kserve import MODEL_NAME, Update, decode_response, encode_request
from tests.dgemma.fake_triton import USAGE, end_marker, final, inputs, response

# Requests

MESSAGES = [{"role": "user", "content": "né ✓"}]


@pytest.mark.parametrize(
    ("prompt", "options", "tensors"),
    [
        ("hi", {}, {"text_input": "hi"}),
        ("", {}, {"text_input": ""}),  # the server says what is wrong with an empty prompt
        (None, {"messages": MESSAGES}, {"messages": json.dumps(MESSAGES, ensure_ascii=False)}),
        (None, {"input_ids": [2, 7, -1]}, {"input_ids": [2, 7, -1]}),
        (None, {"input_ids": []}, {"input_ids": []}),
        (
            "hi",
            {"canvas_template": "a<|gap:3|>"},
            {"text_input": "hi", "canvas_template": "a<|gap:3|>"},
        ),
    ],
)
def test_each_prompt_and_the_template_have_a_tensor_of_their_own(
    prompt: str | None, options: dict[str, Any], tensors: dict[str, Any]
) -> None:
    assert inputs(encode_request(prompt, "block", options)) == {**tensors, "stream": "block"}


def test_all_other_options_are_sampling_parameters_whatever_their_names() -> None:
    options = {"seed": 0, "stop": ["é"], "ignore_eos": False, "preset": "fast", "unheard_of": 1}
    sent = inputs(encode_request("x", "none", options))["sampling_parameters"]
    assert json.loads(sent) == options
    assert "é" in sent


def test_an_option_that_is_none_is_not_sent() -> None:
    options = dict.fromkeys(["messages", "input_ids", "canvas_template", "seed", "preset"])
    assert inputs(encode_request("x", "block", options)) == {"text_input": "x", "stream": "block"}


def test_a_request_names_the_model_and_asks_for_the_empty_final_response() -> None:
    request = encode_request("x", "block", {})
    assert request.model_name == MODEL_NAME == "diffusion_gemma"
    assert request.parameters["triton_enable_empty_final_response"].bool_param is True


@pytest.mark.parametrize(
    ("prompt", "options", "got"),
    [
        (None, {}, "none"),
        ("x", {"messages": MESSAGES}, "text_input and messages"),
        (None, {"messages": MESSAGES, "input_ids": [1]}, "messages and input_ids"),
        ("x", {"messages": [], "input_ids": []}, "text_input and messages and input_ids"),
    ],
)
def test_anything_but_one_prompt_is_rejected(
    prompt: str | None, options: dict[str, Any], got: str
) -> None:
    with pytest.raises(RequestRejected, match=rf"^prompt: give exactly one .*; got {got}$"):
        encode_request(prompt, "block", options)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("\ud800", {}, "text_input: not valid Unicode text"),
        ("x", {"canvas_template": "\udfff"}, "canvas_template: not valid Unicode text"),
        ("x", {"stop": "\ud800"}, "sampling_parameters: not valid Unicode text"),
        ("x", {"seed": object()}, "sampling_parameters: cannot be written as JSON"),
        ("x", {"t_min": float("nan")}, "sampling_parameters: cannot be written as JSON"),
        (None, {"messages": [{1, 2}]}, "messages: cannot be written as JSON"),
        (None, {"input_ids": [2**31]}, "input_ids: must be a sequence of 32-bit integers"),
        (None, {"input_ids": ["1"]}, "input_ids: must be a sequence of 32-bit integers"),
        (None, {"input_ids": 5}, "input_ids: must be a sequence of 32-bit integers"),
        (None, {"input_ids": [1.5]}, "input_ids: must be a sequence of 32-bit integers"),
    ],
)
def test_what_no_message_can_carry_is_rejected_by_name(
    prompt: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        encode_request(prompt, "block", options)
    assert caught.value.message.startswith(message)
    assert caught.value.code == "INVALID_ARGUMENT"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(max_codepoint=300)))
def test_any_text_arrives_as_it_was(prompt: str, template: str) -> None:
    tensors = inputs(encode_request(prompt, "draft", {"canvas_template": template}))
    assert (tensors["text_input"], tensors["canvas_template"]) == (prompt, template)


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_any_token_ids_arrive_as_they_were(ids: list[int]) -> None:
    assert inputs(encode_request(None, "block", {"input_ids": ids}))["input_ids"] == ids


# Responses


def decode(message: Any) -> Update | None:
    return decode_response(message.infer_response)


def test_a_block_says_what_it_adds_and_has_neither_end_nor_bill() -> None:
    message = response("block", "é\n", token_ids=(5, 319), block_index=2, denoising_step=7)
    assert decode(message) == Update("block", "é\n", (5, 319), (), 2, 7, None, None)


def test_a_draft_has_a_state_for_each_character() -> None:
    update = decode(response("draft", "abc", states=(0, 1, 2), denoising_step=1))
    assert update is not None
    assert (update.text, update.states) == ("abc", (0, 1, 2))


def test_the_final_response_has_reason_and_usage() -> None:
    update = decode(final("bye", "length", token_ids=(9,)))
    assert update is not None
    assert (update.kind, update.text, update.token_ids) == ("final", "bye", (9,))
    assert (update.finish_reason, update.usage) == ("length", USAGE)


def test_triton_s_empty_end_marker_is_no_update() -> None:
    assert decode(end_marker()) is None


def test_the_order_of_the_outputs_does_not_matter() -> None:
    message = response("block", "text", token_ids=(1,), block_index=3, denoising_step=4)
    body = message.infer_response
    pairs = list(zip(body.outputs, body.raw_output_contents, strict=True))[::-1]
    reversed_body = type(body)(
        outputs=[output for output, _ in pairs], raw_output_contents=[raw for _, raw in pairs]
    )
    assert decode_response(reversed_body) == decode(message)


def without(name: str) -> Any:
    """A response that lacks one output."""
    body = response("block", "text").infer_response
    at = [output.name for output in body.outputs].index(name)
    del body.outputs[at], body.raw_output_contents[at]
    return body


def with_raw(name: str, raw: bytes) -> Any:
    """A response one of whose outputs holds these bytes."""
    body = response("block", "text").infer_response
    body.raw_output_contents[[output.name for output in body.outputs].index(name)] = raw
    return body


@pytest.mark.parametrize(
    "name", [output.name for output in response("block").infer_response.outputs]
)
def test_a_response_that_lacks_an_output_is_a_server_failure(name: str) -> None:
    with pytest.raises(ServerFailure, match=f"contract .*{name}.*of the same version"):
        decode_response(without(name))


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("text_output", b"\1\0\0\0\xff"),
        ("token_ids", b"\1\0\0"),
        ("block_index", b""),
        ("denoising_step", b"\1"),
        ("usage", b"\1\0\0\0{"),
    ],
)
def test_a_response_with_a_misshapen_output_is_a_server_failure(name: str, raw: bytes) -> None:
    with pytest.raises(ServerFailure, match="does not keep to the contract"):
        decode_response(with_raw(name, raw))


def test_outputs_without_contents_are_a_server_failure() -> None:
    body = response("block", "text").infer_response
    del body.raw_output_contents[:]
    with pytest.raises(ServerFailure, match="does not keep to the contract"):
        decode_response(body)
