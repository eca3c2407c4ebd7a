"""The wire contract as anybody's client sees it: plain tritonclient, nothing of `dgemma`."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "diffusion_gemma"
DEADLINE_S = 60.0
TYPES = {
    "text_output": "BYTES",
    "token_ids": "INT32",
    "kind": "BYTES",
    "finish_reason": "BYTES",
    "block_index": "INT32",
    "denoising_step": "INT32",
    "usage": "BYTES",
    "text_states": "UINT8",
}


@dataclass(frozen=True)
class Answered:
    """One response: its outputs as arrays, and the request it belongs to."""

    request_id: str
    final: bool  # Triton's own mark of the last response
    outputs: dict[str, Any]
    declared: dict[str, tuple[str, list[int]]]  # data type and shape as the response gives them
    arrived: float = field(default_factory=time.monotonic)  # seconds

    def text(self, name: str) -> str:
        return bytes(self.outputs[name].item()).decode()

    @property
    def kind(self) -> str:
        return self.text("kind")

    @property
    def usage(self) -> dict[str, Any]:
        return dict(json.loads(self.text("usage")))


Reply = Answered | InferenceServerException


def text_input(name: str, *values: str | bytes) -> triton.InferInput:
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    tensor = triton.InferInput(name, [len(encoded)], "BYTES")
    tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_))
    return tensor


def ids_input(ids: list[int]) -> triton.InferInput:
    tensor = triton.InferInput("input_ids", [len(ids)], "INT32")
    tensor.set_data_from_numpy(np.array(ids, dtype=np.int32))
    return tensor


def inputs(
    *,
    input_ids: list[int] | None = None,
    sampling: dict[str, Any] | str | bytes | None = None,
    **texts: str | bytes,
) -> list[triton.InferInput]:
    """Tensors of a request; `sampling` is its parameters, as an object or as it is to be sent."""
    tensors = [text_input(name, value) for name, value in texts.items()]
    if input_ids is not None:
        tensors.append(ids_input(input_ids))
    if sampling is not None:
        encoded = json.dumps(sampling) if isinstance(sampling, dict) else sampling
        tensors.append(text_input("sampling_parameters", encoded))
    return tensors


class Stream:
    """One gRPC stream; any number of requests may run on it."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.client = client
        self.open = 0  # requests that have had no end
        self._replies: queue.Queue[Reply] = queue.Queue()

    def send(self, tensors: list[triton.InferInput], request_id: str = "") -> None:
        self.open += 1
        self.client.async_stream_infer(
            MODEL, tensors, request_id=request_id, enable_empty_final_response=True
        )

    def receive(self) -> Reply:
        reply = self._replies.get(timeout=DEADLINE_S)
        if not isinstance(reply, Answered) or reply.final:
            self.open -= 1
        return reply

    def answer(self) -> Answered:
        """The next response; raises the error where there is one."""
        reply = self.receive()
        if isinstance(reply, Answered):
            return reply
        raise reply

    def heard(self) -> int:
        """How many responses can be received without waiting."""
        return self._replies.qsize()

    def accept(self, result: Any, error: Any) -> None:
        """tritonclient's callback; it runs on a thread of tritonclient's."""
        self._replies.put(error if error is not None else _answered(result))


def _answered(result: Any) -> Answered:
    response = result.get_response()
    final = response.parameters["triton_final_response"].bool_param
    outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
    declared = {o.name: (o.datatype, list(o.shape)) for o in response.outputs}
    return Answered(response.id, final, outputs, declared)


@contextmanager
def stream(url: str) -> Iterator[Stream]:
    """A stream with a deadline; what still runs at its end is cancelled.

    An error is a message on the stream, and the requests beside it go on.
    """
    with triton.InferenceServerClient(url) as client:
        opened = Stream(client)
        client.start_stream(opened.accept, stream_timeout=DEADLINE_S)
        try:
            yield opened
        finally:
            client.stop_stream(cancel_requests=opened.open > 0)


def ask(url: str, tensors: list[triton.InferInput]) -> list[Answered]:
    """All responses to one request; raises the error where there is one."""
    with stream(url) as opened:
        opened.send(tensors)
        responses = [opened.answer()]
        while not responses[-1].final:
            responses.append(opened.answer())
        return responses


def joined(responses: list[Answered]) -> tuple[str, list[int]]:
    """Text and token ids of an answer, whatever its mode."""
    parts = [response for response in responses if response.kind != "draft"]
    ids = [int(token_id) for part in parts for token_id in part.outputs["token_ids"]]
    return "".join(part.text("text_output") for part in parts), ids
