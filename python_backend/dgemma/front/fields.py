"""The fields of a request's body: those that mean something here, and why others cannot.

Knows OpenAI's names and ours; leaves the judgement of sampling values to the service, whose errors
name the field and its range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError

from dgemma.decoding import decode_json, shown
from dgemma.errors import InvalidRequest
from dgemma.front.errors import HttpError, refused

# The service's sampling parameters that a body may set under their own names.
SAMPLING = (
    *("max_denoising_steps", "t_min", "t_max", "entropy_bound", "stability_threshold"),
    *("confidence_threshold", "preset", "ignore_eos", "seed", "stop", "priority", "deadline_s"),
)
LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens")  # three names of one thing


@dataclass(frozen=True)
class Neutral:
    """A field that cannot be honoured, but for values that ask for nothing."""

    why: str
    values: tuple[Any, ...] = ()

    def accepts(self, value: object) -> bool:
        return any(_same(value, neutral) for neutral in self.values)


_NO_PROBABILITIES = "a canvas is denoised as a whole, and no token has a probability to report"
_NO_TOP = "sampling is by entropy_bound, t_min and t_max"
_ONE = "a request has one answer; send several requests with different seeds"
_TEMPERATURE = "a canvas cools from t_max to t_min while it is denoised; set those"
_NO_GRAMMAR = "answers are not constrained; pin what must stand with canvas_template"
_NOT_KEPT = "nothing is stored"
_TEXT_ONLY = "text only"
UNSUPPORTED: Mapping[str, Neutral] = {
    "n": Neutral(_ONE, (1,)),
    "best_of": Neutral(_ONE, (1,)),
    "logprobs": Neutral(_NO_PROBABILITIES, (False,)),
    "top_logprobs": Neutral(_NO_PROBABILITIES, (0,)),
    "prompt_logprobs": Neutral(_NO_PROBABILITIES),
    "logit_bias": Neutral("the bias of single tokens is not served", ({},)),
    "temperature": Neutral(_TEMPERATURE, (1,)),
    "top_p": Neutral(_NO_TOP, (1,)),
    "top_k": Neutral(_NO_TOP, (-1, 0)),
    "min_p": Neutral(_NO_TOP, (0,)),
    "frequency_penalty": Neutral("penalties are not served", (0,)),
    "presence_penalty": Neutral("penalties are not served", (0,)),
    "repetition_penalty": Neutral("penalties are not served", (1,)),
    "min_tokens": Neutral("use ignore_eos for an answer of exactly max_tokens", (0,)),
    "response_format": Neutral(_NO_GRAMMAR, ({"type": "text"},)),
    "guided_json": Neutral(_NO_GRAMMAR),
    "structured_outputs": Neutral(_NO_GRAMMAR),
    "prediction": Neutral(_NO_GRAMMAR),
    "echo": Neutral("the prompt is not repeated", (False,)),
    "suffix": Neutral("use /v1/infill, whose canvas_template may end in text", ("",)),
    "functions": Neutral("superseded by tools"),
    "function_call": Neutral("superseded by tool_choice", ("none", "auto")),
    "reasoning_effort": Neutral('use chat_template_kwargs, such as {"enable_thinking": true}'),
    "modalities": Neutral(_TEXT_ONLY, (["text"],)),
    "audio": Neutral(_TEXT_ONLY),
    "web_search_options": Neutral("nothing is searched"),
    "store": Neutral(_NOT_KEPT, (False,)),
    "service_tier": Neutral("there is one tier", ("auto", "default")),
    "verbosity": Neutral("say in the prompt how long the answer should be", ("medium",)),
}
# They are for OpenAI's own records and change no answer.
IGNORED = (
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
)


class Body(BaseModel):
    """What the bodies of all endpoints have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    stream: Any = False
    stream_options: dict[str, StrictBool] | None = None
    canvas_template: str | None = None
    max_tokens: Any = None
    max_new_tokens: Any = None
    max_denoising_steps: Any = None
    t_min: Any = None
    t_max: Any = None
    entropy_bound: Any = None
    stability_threshold: Any = None
    confidence_threshold: Any = None
    preset: Any = None
    ignore_eos: Any = None
    seed: Any = None
    stop: Any = None
    priority: Any = None
    deadline_s: Any = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.get("include_usage"))

    def check(self) -> None:
        """What pydantic does not; raises HttpError."""
        if not isinstance(self.stream, bool) and self.stream != "draft":
            raise refused("stream", f'got {shown(self.stream)}; allowed: true, false or "draft"')
        for name in self.stream_options or {}:
            if name not in ("include_usage", "include_obfuscation"):
                raise refused(f"stream_options.{name}", "unknown; known: include_usage")
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "goes with stream alone; leave it out, or set stream")

    def sampling(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The service's sampling parameters, and what the body called those of other names."""
        values = {name: getattr(self, name) for name in SAMPLING}
        given = {
            name: value for name in LENGTHS if (value := getattr(self, name, None)) is not None
        }
        if len({json.dumps(value) for value in given.values()}) > 1:
            raise refused(next(iter(given)), f"differs from {list(given)[1]}; send one of them")
        values["max_new_tokens"] = next(iter(given.values()), None)
        names = {"max_new_tokens": next(iter(given), "max_tokens"), "text_input": "prompt"}
        names |= {"input_ids": "prompt"}
        return {name: value for name, value in values.items() if value is not None}, names


B = TypeVar("B", bound=Body)


def read_body(model: type[B], raw: bytes) -> B:
    """The body as `model`; null is the same as absent.

    Raises HttpError: 400 for what is not JSON, unknown, of the wrong type or not supported.
    """
    try:
        data = decode_json("body", raw)
    except InvalidRequest as error:
        raise HttpError(400, str(error)) from None
    if not isinstance(data, dict):
        raise HttpError(400, f"body: got {shown(data)}; send a JSON object")
    given = {key: value for key, value in data.items() if value is not None}
    for name in given.keys() & UNSUPPORTED.keys():
        rule = UNSUPPORTED[name]
        if not rule.accepts(given[name]):
            accepted = " or ".join(json.dumps(value) for value in rule.values)
            instead = f"; leave it out, or send {accepted}" if rule.values else "; leave it out"
            raise refused(name, f"not supported: {rule.why}{instead}", "unsupported_parameter")
    known = {k: v for k, v in given.items() if k not in UNSUPPORTED and k not in IGNORED}
    for name in known:
        if name not in model.model_fields:
            hint = ", ".join(model.model_fields)
            raise refused(str(shown(name)[1:-1]), f"unknown field; known: {hint}", "unknown_field")
    try:
        body = model.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        # Behind the field's name, strings are pydantic's names of alternatives.
        name, *path = first["loc"]
        indices = "".join(f"[{index}]" for index in path if isinstance(index, int))
        raise refused(f"{name}{indices}", first["msg"]) from None
    body.check()
    return body


def _same(value: object, neutral: object) -> bool:
    """Equal as JSON values: 1 is 1.0, and neither is true."""
    if isinstance(value, bool) or isinstance(neutral, bool):
        return value is neutral
    return value == neutral
