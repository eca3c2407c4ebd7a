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
        opening = {CHANNEL: Kind.REASONING}
        if calls:
            opening[TOOL_CALL] = Kind.CALL
        # Between the tags of a call or of thinking, only the end of it is a tag.
        self._tags: dict[Kind, dict[str, Kind]] = {
            Kind.CONTENT: opening,
            Kind.REASONING: {
                CHANNEL_END: Kind.CONTENT,
                **({TOOL_CALL: Kind.CALL} if calls else {}),
            },
            Kind.CALL: {TOOL_CALL_END: Kind.CONTENT},
        }
        self._kind = Kind.CONTENT
        self._held = ""  # what may still become a tag
        self._heading = ""  # what is left of the channel's name

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
            previous, self._kind = self._kind, self._tags[self._kind][tag]
            if previous is not Kind.CONTENT:
                yield Part(previous, "", closed=True)
            self._heading = _THOUGHT if self._kind is Kind.REASONING else ""
        settled = len(self._held) - self._begun()
        before, self._held = self._held[:settled], self._held[settled:]
        yield from self._part(before)

    def finish(self) -> Iterator[Part]:
        """What was held, when nothing follows."""
        held, self._held = self._held, ""
        yield from self._part(held)

    def _part(self, text: str) -> Iterator[Part]:
        while self._heading and text and text[0] == self._heading[0]:
            text, self._heading = text[1:], self._heading[1:]
        if text:
            self._heading = ""
            # A quote outside a call is a control token that strayed.
            visible = text if self._kind is Kind.CALL else text.replace(QUOTE, "")
            yield Part(self._kind, visible)

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
