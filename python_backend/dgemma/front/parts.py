"""The text of an answer, as it comes, in its parts: thinking, content and tool calls.

Knows the tags; knows nothing of what is in a call. A tag may come in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from dgemma.tags import CHANNEL, CHANNEL_END, QUOTE, TOOL_CALL, TOOL_CALL_END

# The name of the channel stands before its text, on a line of its own.
_THOUGHT = "thought\n"


class Kind(StrEnum):
    """What a piece of text is part of."""

    CONTENT = "content"
    REASONING = "reasoning"
    CALL = "call"  # what stands between the tags of a call, in as many pieces as it came


@dataclass(frozen=True)
class Part:
    """`closed` is the end of a call or of the thinking; its text is empty."""

    kind: Kind
    text: str
    closed: bool = False


class Splitter:
    """Takes an answer's text and gives its parts. Without `calls`, calls are content."""

    def __init__(self, calls: bool) -> None:
        opening = {TOOL_CALL: Kind.CALL} if calls else {}
        # Outside a call a quote is a control token that strayed; within, only the end is a tag.
        self._tags: dict[Kind, dict[str, Kind]] = {
            Kind.CONTENT: {CHANNEL: Kind.REASONING, QUOTE: Kind.CONTENT, **opening},
            Kind.REASONING: {CHANNEL_END: Kind.CONTENT, QUOTE: Kind.REASONING, **opening},
            Kind.CALL: {TOOL_CALL_END: Kind.CONTENT},
        }
        self._kind = Kind.CONTENT
        self._held = ""  # what may still become a tag
        self._name: str | None = None  # what may still become the channel's

    @property
    def within(self) -> Kind:
        """The part that the text so far ends in."""
        return self._kind

    def feed(self, text: str) -> Iterator[Part]:
        """The parts that this text settles."""
        self._held += text
        while (found := self._first_tag()) is not None:
            at, tag = found
            before, self._held = self._held[:at], self._held[at + len(tag) :]
            yield from self._part(before)
            kind = self._tags[self._kind][tag]
            if kind is not self._kind:
                yield from self._close(kind)
        settled = len(self._held) - self._begun()
        before, self._held = self._held[:settled], self._held[settled:]
        yield from self._part(before)

    def finish(self) -> Iterator[Part]:
        """What was held, when nothing follows."""
        held, self._held = self._held, ""
        yield from self._part(held)
        yield from self._unnamed()

    def _close(self, kind: Kind) -> Iterator[Part]:
        yield from self._unnamed()
        previous, self._kind = self._kind, kind
        if previous is not Kind.CONTENT:
            yield Part(previous, "", closed=True)
        self._name = "" if kind is Kind.REASONING else None

    def _part(self, text: str) -> Iterator[Part]:
        if self._name is not None:
            self._name += text
            if len(self._name) < len(_THOUGHT) and _THOUGHT.startswith(self._name):
                return
            text, self._name = self._name.removeprefix(_THOUGHT), None
        if text:
            yield Part(self._kind, text)

    def _unnamed(self) -> Iterator[Part]:
        """What looked like the beginning of a channel's name and was text."""
        text, self._name = self._name, None
        if text:
            yield Part(self._kind, text)

    def _first_tag(self) -> tuple[int, str] | None:
        found = [(at, tag) for tag in self._tags[self._kind] if (at := self._held.find(tag)) >= 0]
        return min(found, default=None)

    def _begun(self) -> int:
        """How many characters at the end could be the beginning of a tag."""
        tags = self._tags[self._kind]
        longest = max(map(len, tags)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(tag.startswith(self._held[-length:]) for tag in tags):
                return length
        return 0
