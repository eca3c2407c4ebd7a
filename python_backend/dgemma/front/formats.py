"""Events as OpenAI's objects: a whole answer, or the chunks of a stream.

Knows the shapes of chat and text completions and what we add to them under `dgemma`; knows nothing
of HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dgemma import __version__
from dgemma.front.answers import Draft, End, Event, Text, call_id
from dgemma.front.calls import Call

Json = dict[str, Any]
# Of the service's usage, what OpenAI's has a place for.
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True)
class Identity:
    """What every object of one answer bears."""

    id: str
    created: int  # seconds of Unix
    model: str


class Format(ABC):
    """One answer in one of OpenAI's shapes; each method is for one answer only."""

    whole_object: str
    chunk_object: str

    def __init__(self, identity: Identity, include_usage: bool = False) -> None:
        self._identity, self._include_usage = identity, include_usage

    async def whole(self, events: AsyncIterable[Event]) -> Json:
        """The object of an answer that is not streamed."""
        end = End("stop", {})
        async for event in events:
            if isinstance(event, End):
                end = event
            else:
                self._collect(event)
        return {
            **self._head(self.whole_object),
            "choices": [{"index": 0, **self._choice(), **_ended(end.finish_reason)}],
            "usage": usage_of(end.usage),
            "dgemma": dict(end.usage),
        }

    def opening(self) -> Iterator[Json]:
        """Chunks before the first event."""
        yield from ()

    def chunks(self, event: Event) -> Iterator[Json]:
        match event:
            case Draft():
                update = event.update
                yield self._chunk(
                    None,
                    draft={
                        "text": update.text,
                        "states": list(update.states),
                        "block_index": update.block_index,
                        "denoising_step": update.denoising_step,
                    },
                )
            case End():
                yield self._chunk(
                    {**self._nothing(), **_ended(event.finish_reason)}, dgemma=dict(event.usage)
                )
                if self._include_usage:
                    yield self._chunk(None, usage=usage_of(event.usage))
            case _:
                yield self._chunk({**self._delta(event), **_ended(None)})

    @abstractmethod
    def _collect(self, event: Event) -> None:
        """Keep what an event adds to the whole answer."""

    @abstractmethod
    def _choice(self) -> Json:
        """What was collected."""

    @abstractmethod
    def _delta(self, event: Event) -> Json:
        """A chunk's choice."""

    @abstractmethod
    def _nothing(self) -> Json:
        """That of a chunk which adds nothing."""

    def _head(self, kind: str) -> Json:
        identity = self._identity
        return {
            "id": identity.id,
            "object": kind,
            "created": identity.created,
            "model": identity.model,
            "system_fingerprint": f"dgemma-{__version__}",
        }

    def _chunk(self, choice: Json | None, **more: Any) -> Json:
        if self._include_usage:
            more.setdefault("usage", None)
        choices = [] if choice is None else [{"index": 0, **choice}]
        return {**self._head(self.chunk_object), "choices": choices, **more}


class ChatFormat(Format):
    """`chat.completion` and `chat.completion.chunk`."""

    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, identity: Identity, include_usage: bool = False) -> None:
        super().__init__(identity, include_usage)
        self._content, self._reasoning = "", ""
        self._calls: list[Json] = []
        self._call_index = 0

    def opening(self) -> Iterator[Json]:
        yield self._chunk({"delta": {"role": "assistant", "content": ""}, **_ended(None)})

    def _collect(self, event: Event) -> None:
        match event:
            case Text(text, True):
                self._reasoning += text
            case Text(text):
                self._content += text
            case Call():
                self._calls.append(_call(event))

    def _choice(self) -> Json:
        message: Json = {"role": "assistant", "content": self._content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = self._content or None
        return {"message": message}

    def _delta(self, event: Event) -> Json:
        match event:
            case Call():
                index, self._call_index = self._call_index, self._call_index + 1
                return {"delta": {"tool_calls": [{"index": index, **_call(event)}]}}
            case Text(text, reasoning):
                return {"delta": {"reasoning_content" if reasoning else "content": text}}
        raise TypeError(f"no delta for {event}")

    def _nothing(self) -> Json:
        return {"delta": {}}


class TextFormat(Format):
    """`text_completion`, streamed or not."""

    whole_object = chunk_object = "text_completion"

    def __init__(self, identity: Identity, include_usage: bool = False) -> None:
        super().__init__(identity, include_usage)
        self._text = ""

    def _collect(self, event: Event) -> None:
        if isinstance(event, Text):
            self._text += event.text

    def _choice(self) -> Json:
        return {"text": self._text}

    def _delta(self, event: Event) -> Json:
        assert isinstance(event, Text)
        return {"text": event.text}

    def _nothing(self) -> Json:
        return {"text": ""}


def usage_of(usage: Mapping[str, Any]) -> Json:
    """OpenAI's usage, from the service's."""
    prompt, completion, cached = (int(usage.get(key, 0)) for key in _TOKENS)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call_id(), "type": "function", "function": function}


def _ended(finish_reason: str | None) -> Json:
    return {"logprobs": None, "finish_reason": finish_reason}
