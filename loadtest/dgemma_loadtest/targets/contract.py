"""The service's tensors as KServe v2 messages, as far as a load test needs them.

Knows names, layout and how errors are written; knows nothing of channels or time.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from dgemma_loadtest.errors import TargetError
from dgemma_loadtest.jobs import Job
from dgemma_loadtest.records import Usage

MODEL = "diffusion_gemma"
_STATUS = re.compile(r"\[([A-Z_]+)\] (.*)", re.DOTALL)
_RETRY_AFTER = re.compile(r"; retry after ([0-9.]+) s$")


@dataclass(frozen=True)
class Reply:
    """A response, as far as it is measured."""

    kind: str  # draft, block or final
    characters: int
    block: int
    steps: int
    finish_reason: str | None
    usage: Usage | None


def encode(job: Job, model: str = MODEL) -> bytes:
    """A ModelInferRequest: a chat of one message, or with a template."""
    request = service_pb2.ModelInferRequest(model_name=model)
    # Without it, the end of an answer whose last response came earlier could not be seen.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    _add(request, "messages", json.dumps([{"role": "user", "content": job.prompt.text}]))
    if job.task == "infill" and job.prompt.template is not None:
        _add(request, "canvas_template", job.prompt.template)
    sampling = {"seed": job.seed, **job.sampling}
    if job.max_new_tokens is not None and job.task != "infill":
        sampling["max_new_tokens"] = job.max_new_tokens
    _add(request, "sampling_parameters", json.dumps(sampling))
    _add(request, "stream", "block")
    content: bytes = request.SerializeToString()
    return content


def decode(content: bytes) -> Reply | None:
    """None for Triton's mark that a request has ended. Raises TargetError for a refusal, or where
    the response does not keep to the contract.
    """
    message = service_pb2.ModelStreamInferResponse.FromString(content)
    if message.error_message:
        raise refusal(message.error_message)
    response = message.infer_response
    if not response.outputs:
        return None
    try:
        raw = {
            output.name: data
            for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        usage = _text(raw["usage"])
        return Reply(
            kind=_text(raw["kind"]),
            characters=len(_text(raw["text_output"])),
            block=_int32(raw["block_index"]),
            steps=_int32(raw["denoising_step"]),
            finish_reason=_text(raw["finish_reason"]) or None,
            usage=usage_of(json.loads(usage)) if usage else None,
        )
    except (LookupError, ValueError, struct.error) as error:
        raise TargetError(
            "INTERNAL", f"the response does not keep to the contract ({type(error).__name__})"
        ) from error


def refusal(said: str) -> TargetError:
    """`[CODE] details; retry after 2 s`, as streams carry errors."""
    match = _STATUS.fullmatch(said)
    code, details = match.groups() if match else ("UNKNOWN", said)
    after = _RETRY_AFTER.search(details)
    return TargetError(code, details, None if after is None else float(after[1]))


def usage_of(said: Mapping[str, Any]) -> Usage:
    """The service's usage, over gRPC or under `dgemma` over HTTP; times become seconds."""

    def seconds(name: str) -> float | None:
        value = said.get(name)
        return None if value is None else float(value) / 1e3

    simulated = said.get("simulated")
    return Usage(
        prompt_tokens=said.get("prompt_tokens"),
        useful_tokens=said.get("completion_tokens"),
        committed_tokens=said.get("committed_tokens"),
        steps=tuple(said.get("denoising_steps") or ()),
        cap_hits=said.get("cap_hits"),
        passes=said.get("passes"),
        prefill_chunks=said.get("prefill_chunks"),
        cached_tokens=said.get("cached_tokens"),
        service_units=said.get("service_units"),
        queue_s=seconds("queue_ms"),
        first_block_s=seconds("first_block_ms"),
        total_s=seconds("total_ms"),
        simulated=None if simulated in (None, False) else str(simulated),
    )


def _add(request: Any, name: str, text: str) -> None:
    data = text.encode()
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)


def _text(content: bytes) -> str:
    return content[4:].decode()  # the first four bytes are the length


def _int32(content: bytes) -> int:
    return int.from_bytes(content[:4], "little", signed=True)
