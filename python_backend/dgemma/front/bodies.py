"""The body of each endpoint, and the question that it puts to the service.

Knows chats, prompts and templates; knows nothing of answers.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import StrictBool

from dgemma.front.errors import refused
from dgemma.front.fields import Body

_TOOL = '{"type": "function", "function": {"name": "..."}}'


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Any = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: StrictBool = True
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        super().check()
        for index, tool in enumerate(self.tools or ()):
            function = tool.get("function")
            named = isinstance(function, dict) and isinstance(function.get("name"), str)
            if tool.get("type") != "function" or not named:
                raise refused(f"tools[{index}]", f"a tool is of the form {_TOOL}")
        if self.tool_choice not in ("auto", "none"):
            raise refused(
                "tool_choice",
                'not supported: the model chooses; send "auto" or "none", and say in the prompt '
                "what it should call",
                "unsupported_parameter",
            )

    @property
    def functions(self) -> frozenset[str]:
        """The names of the functions that the model may call."""
        return frozenset(tool["function"]["name"] for tool in self.offered)

    @property
    def offered(self) -> list[dict[str, Any]]:
        return [] if self.tool_choice == "none" else self.tools or []

    def prompt_options(self) -> dict[str, Any]:
        return {"messages": _chat(self.messages, self.offered, self.chat_template_kwargs)}


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: str | list[Any]

    def prompt_options(self) -> dict[str, Any]:
        return _prompt_options(self.prompt)


class InfillBody(Body):
    """`POST /v1/infill`: an answer with gaps, such as `def f(x):<|gap:40|>`."""

    canvas_template: str
    prompt: str | list[Any] | None = None
    messages: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise refused("prompt", "give either a prompt or messages")
        if self.chat_template_kwargs is not None and self.messages is None:
            raise refused("chat_template_kwargs", "goes with messages")

    def prompt_options(self) -> dict[str, Any]:
        if self.messages is not None:
            return {"messages": _chat(self.messages, [], self.chat_template_kwargs)}
        assert self.prompt is not None
        return _prompt_options(self.prompt)


def _prompt_options(prompt: str | list[Any]) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return {"prompt": prompt[0]}
    if len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    if prompt and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        return {"input_ids": prompt}
    raise refused("prompt", "a request has one prompt: a string, or an array of token ids")


def _chat(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], kwargs: dict[str, Any] | None
) -> Any:
    """What the service's `messages` input takes: an object only where there is more to say."""
    rendered = [_with_objects(index, message) for index, message in enumerate(messages)]
    extra = {"tools": tools, "chat_template_kwargs": kwargs}
    given = {key: value for key, value in extra.items() if value}
    return {"messages": rendered, **given} if given else rendered


def _with_objects(index: int, message: dict[str, Any]) -> dict[str, Any]:
    """The arguments of earlier calls as objects: templates spell them in the model's own way."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    parsed = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(function, dict) and isinstance(arguments, str):
            try:
                call = {**call, "function": {**function, "arguments": json.loads(arguments)}}
            except ValueError as error:
                path = f"messages[{index}].tool_calls[{number}].function.arguments"
                raise refused(path, f"not JSON: {error}") from None
        parsed.append(call)
    return {**message, "tool_calls": parsed}
