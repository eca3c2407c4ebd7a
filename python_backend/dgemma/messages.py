"""The `messages` input: a chat as JSON, checked before a template sees it.

Knows the shape of messages and that images are not served; knows nothing of how they are rendered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dgemma.decoding import decode_json, shown
from dgemma.errors import InvalidRequest

FIELD = "messages"
ROLES = ("system", "developer", "user", "assistant", "model", "tool")
KEYS = ("messages", "tools", "chat_template_kwargs")
EXAMPLE = '[{"role": "user", "content": "..."}]'


@dataclass(frozen=True)
class Chat:
    """Messages and what else the chat template is given."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


def parse_chat(raw: bytes) -> Chat:
    """A chat from JSON: an array of messages, or an object of `KEYS` that holds one.

    Contents are strings or arrays of text parts; keys of a message other than role and content are
    for the template. Raises InvalidRequest naming the element at fault.
    """
    data = decode_json(FIELD, raw)
    if isinstance(data, list):
        data = {"messages": data}
    if not isinstance(data, dict):
        raise InvalidRequest(FIELD, f"got {shown(data)}; allowed: an array such as {EXAMPLE}")
    for key in data:
        if key not in KEYS:
            raise InvalidRequest(FIELD, f"unknown key {shown(key)}; known: {', '.join(KEYS)}")
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(FIELD, f"no messages; allowed: a non-empty array such as {EXAMPLE}")
    for index, message in enumerate(messages):
        _check_message(f"{FIELD}[{index}]", message)
    tools = data.get("tools")
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise InvalidRequest(f"{FIELD}.tools", "allowed: an array of objects, one for each tool")
    kwargs = data.get("chat_template_kwargs", {})
    if not isinstance(kwargs, dict) or kwargs.keys() & {"messages", "tools"}:
        raise InvalidRequest(
            f"{FIELD}.chat_template_kwargs",
            "allowed: an object of template variables other than messages and tools, such as "
            '{"enable_thinking": true}',
        )
    return Chat(messages, tools, kwargs)


def _check_message(path: str, message: object) -> None:
    if not isinstance(message, dict):
        raise InvalidRequest(path, f"got {shown(message)}; allowed: an object with role, content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidRequest(
            f"{path}.role", f"got {shown(role)}; allowed: {', '.join(ROLES)}; change the role"
        )
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(f"{path}.content[{index}]", part)
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise InvalidRequest(
            f"{path}.content",
            f"got {shown(content)}; allowed: a string, or an array of text parts",
        )


def _check_part(path: str, part: object) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and "image" in kind:
        raise InvalidRequest(path, "images are not served yet; send text parts only")
    if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequest(path, 'allowed: a text part, {"type": "text", "text": "..."}')
