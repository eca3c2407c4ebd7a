"""A tool call as the model writes it, `name{key:value}`, to a name and arguments in JSON.

Knows the notation of Gemma 4, whose keys are bare and whose strings stand between quote tokens, and
takes JSON in its place; knows nothing of what the functions expect.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from dgemma.tags import QUOTE

_HEAD = re.compile(r"\s*call:\s*([\w.\-/:]+?)\s*(?=\{)", re.ASCII)
_KEY = re.compile(r"[^\s:,{}\[\]\"<]+")
_SCALAR = re.compile(r"[^\s,{}\[\]\"<:]+")
_SPACE = re.compile(r"\s*")
_DEEPEST = 64
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None}


class MalformedCall(ValueError):
    """What stands between the tags is no call."""


@dataclass(frozen=True)
class Call:
    """`arguments` is a JSON object, as text."""

    name: str
    arguments: str


def parse_call(text: str, functions: frozenset[str]) -> Call:
    """The call; raises MalformedCall, which says what is wrong with it."""
    head = _HEAD.match(text)
    if head is None:
        raise MalformedCall("it is not of the form call:name{...}")
    if head[1] not in functions:
        raise MalformedCall(f"there is no function {json.dumps(head[1])}")
    body = text[head.end() :]
    try:
        arguments = json.loads(body, parse_constant=_not_json)
    except (ValueError, RecursionError):
        arguments = _Arguments(body).parse()
    try:
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        written.encode()
    except ValueError as error:  # too large a number, or half a character
        raise MalformedCall(f"its arguments cannot be written as JSON: {error}") from None
    return Call(head[1], written)


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class _Arguments:
    """A recursive descent over the notation."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def parse(self) -> dict[str, Any]:
        arguments = self._object(1)
        self._skip()
        if self._at != len(self._text):
            self._fail("text behind the arguments")
        return arguments

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            self._fail("too many levels")
        self._skip()
        if self._next("{"):
            return self._object(depth)
        if self._next("["):
            return self._array(depth)
        if self._next(QUOTE) or self._next('"'):
            return self._string()
        word = self._match(_SCALAR, "value")
        if word in _WORDS:
            return _WORDS[word]
        if not _NUMBER.fullmatch(word):
            self._fail(f"{json.dumps(word)} is neither a number nor a string between quotes")
        return self._number(word)

    def _object(self, depth: int) -> dict[str, Any]:
        self._take("{")
        members: dict[str, Any] = {}
        while not self._ends("}", first=not members):
            self._skip()
            quoted = self._next(QUOTE) or self._next('"')
            key = self._string() if quoted else self._match(_KEY, "key")
            if key in members:
                self._fail(f"the key {json.dumps(key)} twice")
            self._skip()
            self._take(":")
            members[key] = self._value(depth + 1)
        return members

    def _array(self, depth: int) -> list[Any]:
        self._take("[")
        items: list[Any] = []
        while not self._ends("]", first=not items):
            items.append(self._value(depth + 1))
        return items

    def _string(self) -> str:
        if self._next('"'):
            try:
                text, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
            except ValueError as error:
                self._fail(str(error))
            return str(text)
        start = self._at + len(QUOTE)
        end = self._text.find(QUOTE, start)
        if end < 0:
            self._fail("a string without end")
        self._at = end + len(QUOTE)
        return self._text[start:end]

    def _number(self, word: str) -> Any:
        try:
            return json.loads(word)
        except ValueError as error:  # Python reads no more than some thousand digits
            self._fail(str(error))

    def _ends(self, bracket: str, *, first: bool) -> bool:
        """Past the bracket, or past the comma that stands before another member."""
        self._skip()
        if self._next(bracket):
            self._at += 1
            return True
        if not first:
            self._take(",")
        return False

    def _next(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, text: str) -> None:
        if not self._next(text):
            self._fail(f"no {text!r}")
        self._at += len(text)

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(f"no {what}")
        self._at = found.end()
        return found[0]

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _fail(self, what: str) -> NoReturn:
        raise MalformedCall(f"{what} at character {self._at} of its arguments")
