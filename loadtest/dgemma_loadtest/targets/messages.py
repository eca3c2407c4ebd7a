"""What servers say over HTTP: parts of OpenAI's objects, and lines of metrics.

Pure: knows shapes; knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dgemma_loadtest.errors import TargetError
from dgemma_loadtest.records import Usage

_CODES = {"rate_limit_exceeded": "HTTP_429", "timeout": "HTTP_504", "unavailable": "HTTP_503"}
_TEXTS = ("content", "reasoning_content", "reasoning")


def error_event(error: Any) -> TargetError:
    """An error behind the first event: its code is what OpenAI's clients read, not a status."""
    fields = error if isinstance(error, dict) else {"message": error}
    said = fields.get("code")
    code = _CODES.get(str(said), f"HTTP_{said}" if isinstance(said, int) else "HTTP_STREAM")
    return TargetError(code, str(fields.get("message", "")))


def characters_of(choice: Mapping[str, Any]) -> int:
    """Of text, reasoning and calls that a chunk adds."""
    delta = choice.get("delta") or {}
    texts = [delta.get(name) or "" for name in _TEXTS] + [choice.get("text") or ""]
    calls = [str(call.get("function") or "") for call in delta.get("tool_calls") or ()]
    return sum(map(len, texts + calls))


def counted(usage: Usage, said: Mapping[str, Any]) -> Usage:
    cached = (said.get("prompt_tokens_details") or {}).get("cached_tokens")
    return replace(
        usage,
        prompt_tokens=said.get("prompt_tokens"),
        useful_tokens=said.get("completion_tokens"),
        cached_tokens=cached,
    )


def labels_of(metrics: str, name: str) -> dict[str, str]:
    """The labels of the first line of that metric."""
    for line in metrics.splitlines():
        if line.startswith(name + "{"):
            return dict(_pairs(line[len(name) + 1 : line.rindex("}")]))
    return {}


def _pairs(labels: str) -> Iterator[tuple[str, str]]:
    for part in labels.split(","):
        key, _, value = part.partition("=")
        yield key.strip(), value.strip().strip('"')
