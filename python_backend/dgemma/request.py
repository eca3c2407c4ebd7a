"""A request as it came over the wire, and as the scheduler gets it.

Knows how the inputs fit together: one prompt, a template, and room for both; knows nothing of
Triton. Everything wrong with a request is found here, before it takes a slot.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dgemma.chat import ChatTokenizer
from dgemma.decoding import decode_text, shown
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma.generation import GenerationDefaults
from dgemma.messages import parse_chat
from dgemma.sampling import Sampling, SamplingParameters
from dgemma.scheduler.tenancy import EVERYONE, Tenant
from dgemma.template import FREE, parse_template, pin

__all__ = ["FREE", "RawRequest", "Request", "RequestParser", "Sampling", "StreamMode"]


class StreamMode(StrEnum):
    """Which responses a client gets: the answer at once, by block, or with every denoise step."""

    NONE = "none"
    BLOCK = "block"
    DRAFT = "draft"


@dataclass(frozen=True)
class Request:
    """A checked request, complete in itself."""

    id: str
    prompt: tuple[int, ...]  # token ids, at least one
    sampling: Sampling
    stream: StreamMode
    # With a canvas_template: token id or FREE of each position of every canvas of the answer.
    pinned: tuple[int, ...] | None
    tenant: Tenant = EVERYONE  # who asks; it stays what it was when the request came
    # What is kept of the prompt is found again under this salt alone, except for its first
    # `shared_tokens`, which the operator has published.
    cache_salt: bytes = b""
    shared_tokens: int = 0
    priority: int | None = None  # among its tenant's requests, the higher go first
    deadline_s: float | None = None  # from its arrival; None waits as long as it takes


@dataclass(frozen=True)
class RawRequest:
    """What came over the wire, undecoded; None where an input was not sent."""

    text_input: bytes | None = None
    messages: bytes | None = None
    input_ids: Sequence[int] | None = None
    canvas_template: bytes | None = None
    sampling_parameters: bytes | None = None
    stream: bytes | None = None


class RequestParser:
    """Checks and completes requests for one checkpoint. Safe to use from several threads."""

    def __init__(
        self,
        defaults: GenerationDefaults,
        tokenizer: ChatTokenizer,
        *,
        vocab_size: int,
        canvas_length: int,
        max_model_len: int,
        image_token_ids: frozenset[int],
        draw_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        """`max_model_len` bounds prompt and answer together, in tokens.

        Raises ConfigurationError where a token id that is put into prompts or canvases does not
        exist.
        """
        for key, token_id in (
            ("bos_token_id", defaults.bos_token_id),
            ("eos_token_id", defaults.eos_token_ids[0]),
        ):
            if token_id >= vocab_size:
                raise ConfigurationError(
                    f"generation_config.json: {key}: got {token_id}; allowed: 0 to "
                    f"{vocab_size - 1}, the vocabulary of config.json"
                )
        self._defaults, self._tokenizer = defaults, tokenizer
        self._vocab_size, self._canvas_length = vocab_size, canvas_length
        self._max_model_len, self._image_token_ids = max_model_len, image_token_ids
        self._draw_seed = draw_seed

    def parse(self, raw: RawRequest, request_id: str) -> Request:
        """The request with every default filled in and a seed drawn where none was given.

        Raises InvalidRequest naming the input, what is wrong with it and what is allowed.
        """
        stream = _stream_mode(raw.stream)
        parameters = SamplingParameters.from_wire(raw.sampling_parameters, self._max_model_len)
        prompt_field, prompt = self._prompt(raw)
        template = self._template(raw.canvas_template, parameters.max_new_tokens)
        max_new_tokens = self._max_new_tokens(prompt_field, len(prompt), parameters, template)
        seed = self._draw_seed() if parameters.seed is None else parameters.seed
        sampling = parameters.resolve(self._defaults, max_new_tokens, seed)
        pinned = None
        if template is not None:
            eos = self._defaults.eos_token_ids[0]
            pinned = pin(template, eos, self._canvas_length, max_new_tokens)
        return Request(
            request_id,
            tuple(prompt),
            sampling,
            stream,
            pinned,
            priority=parameters.priority,
            deadline_s=parameters.deadline_s,
        )

    def tokens(self, raw: RawRequest) -> tuple[int, ...]:
        """The token ids of the request's prompt; raises InvalidRequest as `parse` does."""
        return tuple(self._prompt(raw)[1])

    def _prompt(self, raw: RawRequest) -> tuple[str, list[int]]:
        """The input that holds the prompt, and its token ids.

        `text_input` is tokenised as it is, with BOS put in front where it does not begin with it;
        `messages` go through the chat template, which writes its own; `input_ids` are verbatim.
        """
        given = [
            field
            for field in ("text_input", "messages", "input_ids")
            if getattr(raw, field) is not None
        ]
        if len(given) != 1:
            raise InvalidRequest(
                "prompt",
                f"got {' and '.join(given) or 'none'}; allowed: exactly one of text_input, "
                "messages, input_ids",
            )
        if raw.text_input is not None:
            ids = self._encode("text_input", decode_text("text_input", raw.text_input))
            if ids and ids[0] != self._defaults.bos_token_id:
                ids.insert(0, self._defaults.bos_token_id)
        elif raw.messages is not None:
            chat = parse_chat(raw.messages)
            kwargs = {**chat.chat_template_kwargs, "tools": chat.tools}
            ids = self._encode("messages", self._tokenizer.render(chat.messages, **kwargs))
        else:
            ids = [int(token_id) for token_id in raw.input_ids or ()]
        self._check_ids(given[0], ids)
        return given[0], ids

    def _encode(self, field: str, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                field,
                f"character {error.start} is an unpaired surrogate "
                f"({shown(text[error.start])}), which is no character; remove it",
            ) from None

    def _check_ids(self, field: str, ids: list[int]) -> None:
        if not ids:
            raise InvalidRequest(field, "the prompt is empty; send at least one token")
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"{field}[{index}]",
                    f"got {token_id}; allowed: 0 to {self._vocab_size - 1}, the vocabulary",
                )
            if token_id in self._image_token_ids:
                raise InvalidRequest(
                    field,
                    f"token {index} is the image token {token_id}; images are not served yet, "
                    "send text only",
                )

    def _template(self, raw: bytes | None, max_new_tokens: int | None) -> tuple[int, ...] | None:
        if raw is None:
            return None
        text = decode_text("canvas_template", raw)
        limit, tokens = "max_model_len", self._max_model_len
        if max_new_tokens is not None:
            limit, tokens = "max_new_tokens", max_new_tokens
        return parse_template(text, self._tokenizer.encode, limit, tokens)

    def _max_new_tokens(
        self,
        prompt_field: str,
        prompt: int,
        parameters: SamplingParameters,
        template: tuple[int, ...] | None,
    ) -> int:
        """What was asked for; else the template's length; else the default, as far as it fits."""
        limit = self._max_model_len
        room = limit - prompt
        if room < 1:
            raise InvalidRequest(
                prompt_field,
                f"{prompt} tokens leave no room for an answer within max_model_len {limit}; "
                f"shorten the prompt to at most {limit - 1} tokens",
            )
        if parameters.max_new_tokens is not None:
            field, asked = "sampling_parameters.max_new_tokens", parameters.max_new_tokens
        elif template is not None:
            field, asked = "canvas_template", len(template)
        else:
            return min(self._defaults.max_new_tokens, room)
        if asked > room:
            raise InvalidRequest(
                field,
                f"{prompt} prompt tokens + {asked} new tokens exceed max_model_len {limit}; "
                f"shorten the prompt, or ask for at most {room} tokens",
            )
        return asked


def _stream_mode(raw: bytes | None) -> StreamMode:
    if raw is None:
        return StreamMode.BLOCK
    text = decode_text("stream", raw)
    try:
        return StreamMode(text)
    except ValueError:
        allowed = ", ".join(StreamMode)
        raise InvalidRequest("stream", f"got {shown(text)}; allowed: {allowed}") from None
