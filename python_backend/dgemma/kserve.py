"""The service's tensors as KServe v2 messages: requests are encoded, responses decoded.

Knows names, types and layout of the contract; knows nothing of channels, and leaves the judgement
of values to the server, whose errors name the field and its range.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

from tritonclient.grpc import service_pb2

from dgemma.client_errors import RequestRejected, ServerFailure

MODEL_NAME = "diffusion_gemma"

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

StreamMode = Literal["none", "block", "draft"]


class RequestOptions(TypedDict, total=False):
    """What may be said beside a raw prompt; None means the same as absent.

    `messages` or `input_ids` take the place of the prompt. `canvas_template` is an answer with
    gaps (`<|gap:12|>`). The rest are sampling parameters; where one is absent the preset decides,
    then the checkpoint.
    """

    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None
    input_ids: Sequence[int] | None
    canvas_template: str | None
    preset: Literal["quality", "fast"] | None
    max_new_tokens: int | None
    max_denoising_steps: int | None
    t_min: float | None
    t_max: float | None
    entropy_bound: float | None
    stability_threshold: int | None
    confidence_threshold: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    return_token_ids: bool | None
    return_tags: bool | None
    priority: int | None
    deadline_s: float | None


@dataclass(frozen=True)
class Update:
    """One response of the stream.

    `text` is what a block adds to the answer, or the whole provisional canvas of a draft; `states`
    holds one entry per character of a draft: 0 provisional, 1 accepted, 2 pinned. `token_ids` are
    filled when the request set `return_token_ids`. `finish_reason` and `usage` come with `final`.
    """

    kind: str  # draft, block or final
    text: str
    token_ids: tuple[int, ...]
    states: tuple[int, ...]
    block_index: int
    denoising_step: int
    finish_reason: str | None
    usage: dict[str, Any] | None


def encode_request(prompt: str | None, stream: str, options: Mapping[str, Any]) -> Any:
    """A ModelInferRequest. Raises RequestRejected for what no message can carry."""
    given = {name: value for name, value in options.items() if value is not None}
    prompts: dict[str, Any] = {
        "text_input": prompt,
        "messages": given.pop("messages", None),
        "input_ids": given.pop("input_ids", None),
    }
    chosen = [name for name, value in prompts.items() if value is not None]
    if len(chosen) != 1:
        raise RequestRejected(
            "prompt: give exactly one of a prompt, messages and input_ids; "
            f"got {' and '.join(chosen) or 'none'}"
        )
    template = given.pop("canvas_template", None)

    request = service_pb2.ModelInferRequest(model_name=MODEL_NAME)
    # Without it, the end of an answer whose last response came earlier could not be seen.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    if prompt is not None:
        _add_bytes(request, "text_input", prompt)
    if prompts["messages"] is not None:
        _add_bytes(request, "messages", _to_json("messages", prompts["messages"]))
    if prompts["input_ids"] is not None:
        _add_token_ids(request, "input_ids", prompts["input_ids"])
    if template is not None:
        _add_bytes(request, "canvas_template", template)
    if given:
        _add_bytes(request, "sampling_parameters", _to_json("sampling_parameters", given))
    _add_bytes(request, "stream", stream)
    return request


def decode_response(response: Any) -> Update | None:
    """The update in a ModelInferResponse; None for Triton's empty end-of-request marker.

    Raises ServerFailure when the response does not keep to the contract.
    """
    if not response.outputs:
        return None
    names = [output.name for output in response.outputs]
    try:
        raw = dict(zip(names, response.raw_output_contents, strict=True))
        usage = _text(raw["usage"])
        return Update(
            kind=_text(raw["kind"]),
            text=_text(raw["text_output"]),
            token_ids=_int32(raw["token_ids"]),
            states=tuple(raw["text_states"]),
            block_index=_int32(raw["block_index"])[0],
            denoising_step=_int32(raw["denoising_step"])[0],
            finish_reason=_text(raw["finish_reason"]) or None,
            usage=cast("dict[str, Any]", json.loads(usage)) if usage else None,
        )
    except (LookupError, ValueError, struct.error) as error:
        raise ServerFailure(
            f"the response does not keep to the contract ({type(error).__name__}: {error}); "
            "are client and server of the same version?"
        ) from error


def _add(request: Any, name: str, datatype: str, length: int, content: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=[length])
    request.raw_input_contents.append(content)


def _add_bytes(request: Any, name: str, text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise RequestRejected(f"{name}: not valid Unicode text ({error})") from None
    _add(request, name, "BYTES", 1, struct.pack("<I", len(data)) + data)


def _add_token_ids(request: Any, name: str, ids: Iterable[int]) -> None:
    try:
        numbers = tuple(ids)
        data = struct.pack(f"<{len(numbers)}i", *numbers)
    except (TypeError, struct.error):
        raise RequestRejected(f"{name}: must be a sequence of 32-bit integers") from None
    _add(request, name, "INT32", len(numbers), data)


def _to_json(name: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestRejected(f"{name}: cannot be written as JSON ({error})") from None


def _text(content: bytes) -> str:
    return content[4:].decode()  # the first four bytes are the length


def _int32(content: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(content) // 4}i", content)
