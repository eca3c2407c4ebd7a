from __future__ import annotations

import json

import pytest

from dgemma.errors import InvalidRequest
from dgemma.messages import Chat, parse_chat

HELLO = {"role": "user", "content": "hello"}


def parse(data: object) -> Chat:
    return parse_chat(json.dumps(data).encode())


def test_an_array_of_messages() -> None:
    messages = [{"role": "system", "content": "x"}, HELLO, {"role": "assistant", "content": ""}]
    assert parse(messages) == Chat(messages)


def test_an_object_also_carries_tools_and_template_variables() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    kwargs = {"enable_thinking": True}
    chat = parse({"messages": [HELLO], "tools": tools, "chat_template_kwargs": kwargs})
    assert chat == Chat([HELLO], tools, kwargs)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]},
        {"role": "tool", "content": "3", "tool_call_id": "call-1"},
        {"role": "developer", "content": "x"},
        {"role": "model", "content": "x"},
    ],
)
def test_messages_pass_with_all_their_keys(message: dict[str, object]) -> None:
    assert parse([HELLO, message]).messages[1] == message


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ("hello", "messages", 'got "hello"; allowed: an array'),
        ([], "messages", "no messages; allowed: a non-empty array"),
        ({}, "messages", "no messages"),
        ({"messages": "hello"}, "messages", "no messages"),
        ({"messages": [HELLO], "model": "x"}, "messages", 'unknown key "model"; known: messages'),
        ([HELLO, "x"], "messages[1]", 'got "x"; allowed: an object'),
        ([{"content": "x"}], "messages[0].role", "got null; allowed: system, developer, user"),
        ([{"role": "bot", "content": "x"}], "messages[0].role", 'got "bot"'),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "got an array"),
        ([{"role": "user"}], "messages[0].content", "got null; allowed: a string"),
        ([{"role": "user", "content": 5}], "messages[0].content", "got 5"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
            "images are not served yet",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
            "messages[0].content[1]",
            "images are not served yet",
        ),
        (
            [{"role": "user", "content": [{"type": "audio"}]}],
            "messages[0].content[0]",
            "allowed: a text part",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0]",
            "allowed: a text part",
        ),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "allowed: a text part"),
        ({"messages": [HELLO], "tools": {}}, "messages.tools", "an array of objects"),
        ({"messages": [HELLO], "tools": ["add"]}, "messages.tools", "an array of objects"),
        (
            {"messages": [HELLO], "chat_template_kwargs": []},
            "messages.chat_template_kwargs",
            "an object of template variables",
        ),
        (
            {"messages": [HELLO], "chat_template_kwargs": {"tools": []}},
            "messages.chat_template_kwargs",
            "other than messages and tools",
        ),
    ],
)
def test_what_is_no_chat_is_refused_at_its_place(data: object, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    assert caught.value.field == field
    assert message in str(caught.value)


def test_json_errors_name_messages() -> None:
    with pytest.raises(InvalidRequest, match="messages: not JSON"):
        parse_chat(b'[{"role": ')
