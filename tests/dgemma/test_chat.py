from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, processors

from dgemma.chat import ChatTokenizer
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma_build.demo.vocabulary import BOS, EOS, ROLES, build_tokenizer, chat_prompt, to_ids
from tests.tiny_checkpoint import byte_tokenizer, write_checkpoint

TOKENIZER = byte_tokenizer()
# Text without anything that the demo's vocabulary has a token of its own for.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not any(own in text for own in ("<", *ROLES))
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def with_template(source: str) -> ChatTokenizer:
    return ChatTokenizer(build_tokenizer(), source, {"bos_token": "<bos>"})


# The demo's template


@given(TEXT)
def test_one_user_message_renders_what_the_checkpoint_was_trained_on(text: str) -> None:
    assert TOKENIZER.encode(TOKENIZER.render([user(text)])) == chat_prompt(text)


def test_a_conversation() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("hello"),
        {"role": "assistant", "content": "hi"},
        user([{"type": "text", "text": "count "}, {"type": "text", "text": "on"}]),
    ]
    assert TOKENIZER.render(messages) == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nhello<turn|>\n"
        "<|turn>model\nhi<turn|>\n<|turn>user\ncount on<turn|>\n<|turn>model\n"
    )


def test_thinking_is_switched_on_in_the_system_turn() -> None:
    opening = "<bos><|turn>system\n<|think|>\n"
    closing = "<turn|>\n<|turn>user\nx<turn|>\n<|turn>model\n"
    assert TOKENIZER.render([user("x")], enable_thinking=True) == opening + closing
    system = {"role": "system", "content": "Plan."}
    rendered = TOKENIZER.render([system, user("x")], enable_thinking=True)
    assert rendered == f"{opening}Plan.{closing}"


def test_tools_are_declared_in_the_system_turn() -> None:
    function = {"name": "add", "parameters": {"type": "object", "description": "<é>"}}
    rendered = TOKENIZER.render([user("x")], tools=[{"type": "function", "function": function}])
    declaration = "add" + json.dumps(function, ensure_ascii=False)
    assert rendered == (
        f"<bos><|turn>system\n<|tool>declaration:{declaration}<tool|><turn|>\n"
        "<|turn>user\nx<turn|>\n<|turn>model\n"
    )


def test_the_generation_prompt_can_be_left_out() -> None:
    rendered = TOKENIZER.render([user("x")], add_generation_prompt=False)
    assert rendered == "<bos><|turn>user\nx<turn|>\n"


@pytest.mark.parametrize(
    "messages",
    [
        [user("x"), {"role": "system", "content": "late"}],
        [user("x"), {"role": "tool", "content": "3"}],
        [user("x"), {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}],
    ],
)
def test_what_the_template_does_not_know_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequest, match="the chat template refused them: this template knows"):
        TOKENIZER.render(messages)


def test_the_template_refuses_parts_that_are_not_text() -> None:
    with pytest.raises(InvalidRequest, match="a video part cannot be rendered"):
        TOKENIZER.render([user([{"type": "video"}])])


# Any template


def test_a_template_may_raise() -> None:
    tokenizer = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match=r"messages: .*roles must alternate") as caught:
        tokenizer.render([user("x")])
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.at_all }}",
        "{{ 1 + messages }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__init__.__globals__ }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_an_error_in_a_template_is_the_fault_of_the_messages(source: str) -> None:
    with pytest.raises(InvalidRequest, match=r"messages: the chat template refused them: ."):
        with_template(source).render([user("x")])


def test_tojson_keeps_text_as_it_is() -> None:
    source = "{{ messages | tojson }}{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}"
    rendered = with_template(source).render([user("<é>")])
    assert rendered == '[{"role": "user", "content": "<é>"}]{\n "a": 2,\n "b": 1\n}'


def test_templates_get_the_variables_of_hf() -> None:
    source = "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}"
    assert with_template(source).render([user("a")]) == "True True True"


def test_blocks_and_loops_are_those_of_hf() -> None:
    source = (
        "{% for message in messages %}\n"
        "    {% if message.content == 'b' %}\n"
        "        {% break %}\n"
        "    {% endif %}\n"
        "{{ message.content }}\n"
        "{% endfor %}\n"
        "{{ strftime_now('%Y') | int > 2000 }}\n"
    )
    assert with_template(source).render([user("a"), user("b"), user("c")]) == "a\nTrue"


def test_variables_cannot_replace_messages_or_special_tokens() -> None:
    tokenizer = with_template("{{ bos_token }}{{ messages[0].content }}{{ self_ }}")
    hostile = {"messages": [user("other")], "self": 1, "bos_token": "", "self_": "!"}
    assert tokenizer.render([user("mine")], **hostile) == "<bos>mine!"


def test_without_a_template_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages: this checkpoint has no chat template"):
        ChatTokenizer(build_tokenizer()).render([user("x")])


# Encoding and decoding


@given(TEXT)
def test_text_survives_the_round_trip(text: str) -> None:
    assert TOKENIZER.encode(text) == to_ids(text)
    assert TOKENIZER.decode(to_ids(text)) == text


def test_control_tokens_are_recognised_and_skipped() -> None:
    assert TOKENIZER.encode("<bos>a<eos>") == [BOS, *to_ids("a"), EOS]
    assert TOKENIZER.decode([BOS, *to_ids("a"), EOS]) == "a"


def test_the_tokenizer_file_adds_and_cuts_nothing() -> None:
    tokenizer = build_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    assert ChatTokenizer(tokenizer).encode("abcd") == to_ids("abcd")


def test_unpaired_surrogates_are_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        TOKENIZER.encode("a\ud800")


# Files


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.from_checkpoint(write_checkpoint(tmp_path))
    assert tokenizer.encode(tokenizer.render([user("hi")])) == chat_prompt("hi")


def test_special_tokens_come_from_the_tokenizer_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = {"bos_token": {"content": "[B]"}, "eos_token": "[E]", "pad_token": None, "x": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ pad_token }}")
    assert ChatTokenizer.from_checkpoint(tmp_path).render([user("x")]) == "[B][E]<pad>"


def test_the_template_is_optional(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert ChatTokenizer.from_checkpoint(tmp_path).encode("a") == to_ids("a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no such file"),
        ("tokenizer.json", b"{}", "not a tokenizer"),
        ("tokenizer.json", b"\xff", "not a tokenizer"),
        ("tokenizer_config.json", b"{", "cannot be read as JSON"),
        ("tokenizer_config.json", b"[]", "expected a JSON object"),
        ("chat_template.jinja", b"a\n{% if %}", "line 2"),
        ("chat_template.jinja", b"\xff", "utf-8"),
    ],
)
def test_a_bad_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = write_checkpoint(tmp_path) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{name}.*{message}"):
        ChatTokenizer.from_checkpoint(tmp_path)


def test_a_decoder_that_cannot_be_streamed_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.decoder = decoders.CTC()
    with pytest.raises(ConfigurationError, match="decoder CTC cannot be streamed"):
        ChatTokenizer(tokenizer)
