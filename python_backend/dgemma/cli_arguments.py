"""What was typed on the command line, as options of a request.

Knows files, standard input, escapes and KEY=VALUE; knows nothing of what the server accepts.
Raises RequestRejected naming the option at fault.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dgemma.client import Client, RequestRejected

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def prompt_options(prompt: str | None, messages: str | None, raw: bool) -> dict[str, Any]:
    """The one prompt of the request: a raw text, a message or a file of messages."""
    if (prompt is None) == (messages is None):
        raise RequestRejected("PROMPT: give either PROMPT or --messages FILE")
    if messages is not None:
        if raw:
            raise RequestRejected("--raw: applies to PROMPT, not to --messages")
        try:
            return {"messages": json.loads(_read("--messages", messages))}
        except ValueError as error:
            raise RequestRejected(f"--messages: {messages} is not JSON: {error}") from None
    text = _read("PROMPT", "-") if prompt == "-" else prompt
    return {"prompt": text} if raw else {"messages": [{"role": "user", "content": text}]}


def sampling_options(settings: Iterable[str]) -> dict[str, Any]:
    """`key=value` settings; a value is JSON where it parses as such, otherwise a string."""
    options: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise RequestRejected(f"--set: write KEY=VALUE, got {setting!r}")
        if key in _NOT_SAMPLING:
            raise RequestRejected(f"--set: {key} is not a sampling parameter; see --help")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def template_text(template: str) -> str:
    r"""The template as typed, `\n`, `\t` and `\\` replaced; `@FILE` is read and taken literally."""
    if template.startswith("@"):
        return _read("--template", template[1:])
    return re.sub(r"\\[nt\\]", lambda escape: _ESCAPES[escape[0]], template)


def _read(option: str, path: str) -> str:
    """The file's or standard input's text without the line break that editors put at its end."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise RequestRejected(f"{option}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestRejected(f"{option}: {path} is not UTF-8 text: {error}") from None


_NOT_SAMPLING = {*inspect.signature(Client.stream).parameters, "messages", "input_ids"} | {
    "canvas_template",
    "preset",
}
