"""The service's updates as what an answer is made of: text, thinking, calls and an end.

Knows what to do with a malformed tool call; knows nothing of JSON bodies or SSE.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from dgemma.front.calls import Call, MalformedCall, parse_call
from dgemma.front.errors import HttpError
from dgemma.front.parts import Kind, Splitter
from dgemma.front.triton import Question
from dgemma.kserve import Update

_SEEDS = 2**63


class Asks(Protocol):
    """`dgemma.front.triton.Triton`, as far as it is needed here."""

    def ask(self, question: Question) -> AsyncGenerator[Update, None]: ...

    def reachable(self) -> bool: ...


@dataclass(frozen=True)
class Draft:
    """A provisional canvas, and one state per character: 0 provisional, 1 accepted, 2 pinned."""

    update: Update


@dataclass(frozen=True)
class Text:
    """Some of the answer, or of the thinking before it."""

    text: str
    reasoning: bool = False


@dataclass(frozen=True)
class End:
    """The last event. `usage` is the service's, of all attempts together."""

    finish_reason: str
    usage: Mapping[str, Any]


Event = Draft | Text | Call | End
Events = AsyncGenerator[Event, None]


async def text_events(service: Asks, question: Question) -> Events:
    """A plain answer. Raises HttpError where the service stops before it is complete."""
    async with aclosing(service.ask(question)) as updates:
        async for update in updates:
            if update.kind == "draft":
                yield Draft(update)
            elif update.text:
                yield Text(update.text)
            if update.kind == "final":
                yield _end(_complete(update), {})


async def chat_events(
    service: Asks, question: Question, functions: frozenset[str], *, parallel: bool = True
) -> Events:
    """An answer with its thinking apart, and where there are `functions`, its calls; of several
    only the first, unless `parallel`.

    Calls come at the end, when all are known to be well-formed. Where one is not, the service is
    asked once more with another seed: what has been sent of the answer before stays, and the second
    attempt adds its calls; raises HttpError where it has none, or malformed ones.
    """
    question = question.with_options(return_tags=True)
    first = _Attempt(functions, parallel)
    async with aclosing(first.events(service, question)) as events:
        async for event in events:
            yield event
    if first.mistake is None:
        for call in first.calls:
            yield call
        yield _end(first.final, {}, called=bool(first.calls))
        return
    seed = (int(first.usage["seed"]) + 1) % _SEEDS
    second = _Attempt(functions, parallel, silent=first.spoke)
    async with aclosing(second.events(service, question.with_options(seed=seed))) as events:
        async for event in events:
            yield event
    if second.mistake is not None or (first.spoke and not second.calls):
        raise HttpError(
            502,
            "the model called a function in a way that cannot be read, twice: "
            f"{first.mistake}; then: {second.mistake or 'no call'}; ask again, or say in the "
            "prompt how to call it",
            code="malformed_tool_call",
        )
    for call in second.calls:
        yield call
    yield _end(second.final, first.usage, called=bool(second.calls))


@dataclass
class _Attempt:
    """One request of a chat. `silent` gives no event but drafts."""

    functions: frozenset[str]
    parallel: bool
    silent: bool = False
    spoke: bool = False  # whether there was any text, which cannot be taken back
    calls: list[Call] = field(default_factory=list)
    mistake: str | None = None  # in the first malformed call
    final: Update = field(init=False)

    @property
    def usage(self) -> Mapping[str, Any]:
        return self.final.usage or {}

    async def events(self, service: Asks, question: Question) -> Events:
        splitter, call = Splitter(calls=bool(self.functions)), ""
        async with aclosing(service.ask(question)) as updates:
            async for update in updates:
                if update.kind == "draft":
                    yield Draft(update)
                    continue
                parts = [*splitter.feed(update.text)]
                if update.kind == "final":
                    parts += splitter.finish()
                    self.final = _complete(update)
                for part in parts:
                    if part.kind is not Kind.CALL:
                        if part.text and not self.silent:
                            self.spoke = True
                            yield Text(part.text, part.kind is Kind.REASONING)
                        continue
                    call += part.text
                    if part.closed:
                        self._take(call)
                        call = ""
        wanted = self.parallel or not self.calls
        if splitter.within is Kind.CALL and wanted and self.final.finish_reason != "length":
            self.mistake = self.mistake or "it does not end"

    def _take(self, text: str) -> None:
        if self.calls and not self.parallel:
            return
        try:
            self.calls.append(parse_call(text, self.functions))
        except MalformedCall as error:
            self.mistake = self.mistake or str(error)


def _complete(final: Update) -> Update:
    if final.finish_reason == "cancelled":
        raise HttpError(503, "the answer was cut off: the service is stopping")
    return final


def _end(final: Update, before: Mapping[str, Any], called: bool = False) -> End:
    reason = final.finish_reason or "stop"
    usage = {**(final.usage or {})}
    for key, value in before.items():
        if isinstance(value, int | float) and key not in ("prompt_tokens", "seed"):
            usage[key] = usage.get(key, 0) + value
        elif isinstance(value, list):
            usage[key] = value + usage.get(key, [])
    return End("tool_calls" if called and reason == "stop" else reason, usage)


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
