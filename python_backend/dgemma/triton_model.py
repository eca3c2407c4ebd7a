"""Triton's Python backend on one side, the service on the other.

Knows tensors, response senders and error codes of `triton_python_backend_utils`, which exists only
inside Triton's stub process and is therefore passed in; knows nothing of scheduling.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dgemma.errors import DgemmaError, EngineFailure, InvalidRequest
from dgemma.log_lines import configure
from dgemma.metrics.exporter import TritonExporter
from dgemma.metrics.families import FAMILIES
from dgemma.metrics.metrics import Metrics
from dgemma.reply import Reply, Response
from dgemma.request import RawRequest
from dgemma.responder import Conversation, Responder
from dgemma.service import Service
from dgemma.settings import Settings
from dgemma.triton_server.python import check_numpy

logger = logging.getLogger(__name__)

SWITCH_S = 0.0005  # after so long a thread makes way for another; Python's own is ten times that

# gRPC status to the names that TritonError has. Streams carry the text of an error alone, so the
# status also stands in front of it.
_CODES = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "UNAUTHENTICATED": "INVALID_ARG",
    "RESOURCE_EXHAUSTED": "UNAVAILABLE",
    "DEADLINE_EXCEEDED": "UNAVAILABLE",
    "UNAVAILABLE": "UNAVAILABLE",
}


def start(pb_utils: Any) -> TritonModel:
    """Load the service that the environment describes.

    Raises TritonModelException, whose text says what to change or run, where that fails.
    """
    try:
        check_numpy(np.__version__)
        settings = Settings.load()
        configure("backend", settings.log_level, settings.json_log)
        service = Service.from_settings(settings)
        metrics = Metrics(TritonExporter(pb_utils, FAMILIES), service, settings.model_names[0])
        model = TritonModel(pb_utils, service, settings.drain_timeout_s, metrics)
    except DgemmaError as error:
        raise pb_utils.TritonModelException(str(error)) from error
    # All that is loaded stays: looking through it for garbage would stop passes for milliseconds.
    gc.collect()
    gc.freeze()
    # Between passes the device's thread waits for no other to finish reading a request.
    sys.setswitchinterval(SWITCH_S)
    return model


class TritonModel:
    """What `1/model.py` hands its calls to. `execute` may be called from any thread."""

    def __init__(
        self, pb_utils: Any, service: Service, drain_timeout_s: float, metrics: Metrics
    ) -> None:
        self._pb_utils, self._service = pb_utils, service
        self._drain_timeout_s, self._metrics = drain_timeout_s, metrics
        self._responder = Responder(service.cancel)
        service.after_passes(self._responder.poll)
        self._numbers = itertools.count(1)

    def execute(self, requests: Sequence[Any]) -> None:
        """Check and queue the requests; their responses come from another thread."""
        for request in requests:
            channel = TritonChannel(self._pb_utils, request.get_response_sender())
            try:
                self._begin(request, channel)
            except DgemmaError as error:
                self._refuse(channel, error)
            except Exception as error:
                logger.exception("a request could not be read")
                self._refuse(channel, EngineFailure(f"the request could not be read: {error!r}"))

    def _begin(self, request: Any, channel: TritonChannel) -> None:
        # Clients may send any id, or the same one twice.
        request_id = f"{request.request_id()}#{next(self._numbers)}"
        caller = self._service.identify(authorization(request))
        raw = read_request(self._pb_utils, request)
        parsed = caller.claim(self._service.parse(raw, request_id))
        conversation = Conversation(request_id, channel, Reply(parsed, self._service.annotate))
        self._service.submit(parsed, partial(self._responder.post, conversation))
        self._responder.watch(conversation)

    def _refuse(self, channel: TritonChannel, error: DgemmaError) -> None:
        channel.fail(error)
        self._metrics.refused(error)

    def finalize(self) -> None:
        """Let the running requests finish, then end every thread."""
        if not self._service.drain(self._drain_timeout_s):
            logger.warning("cancelling what did not finish in %s s", self._drain_timeout_s)
        self._service.close()
        self._responder.close()
        self._metrics.close()


class TritonChannel:
    """The response sender of one request."""

    def __init__(self, pb_utils: Any, sender: Any) -> None:
        self._pb_utils, self._sender = pb_utils, sender

    def send(self, response: Response, final: bool) -> None:
        tensors = [
            self._tensor("text_output", [response.text_output.encode()], np.object_),
            self._tensor("token_ids", response.token_ids, np.int32),
            self._tensor("kind", [response.kind.encode()], np.object_),
            self._tensor("finish_reason", [response.finish_reason.encode()], np.object_),
            self._tensor("block_index", [response.block_index], np.int32),
            self._tensor("denoising_step", [response.denoising_step], np.int32),
            self._tensor("usage", [response.usage.encode()], np.object_),
            self._tensor("text_states", response.text_states, np.uint8),
        ]
        flags = self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(self._pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)

    def fail(self, error: Exception) -> None:
        codes = self._pb_utils.TritonError
        status = getattr(error, "grpc_code", "INTERNAL")
        name = _CODES.get(status, "INTERNAL")
        self._sender.send(
            self._pb_utils.InferenceResponse(
                output_tensors=[], error=codes(f"[{status}] {error}", getattr(codes, name))
            ),
            flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def _tensor(self, name: str, values: Sequence[Any], dtype: DTypeLike) -> Any:
        return self._pb_utils.Tensor(name, np.array(values, dtype=dtype))


def authorization(request: Any) -> str | None:
    """The metadata of that name, which Triton forwards as a parameter, last of those sent."""
    value = json.loads(request.parameters()).get("authorization")
    return None if value is None else str(value)


def read_request(pb_utils: Any, request: Any) -> RawRequest:
    """The inputs of a Triton request, copied; those that were not sent are None."""

    def array(name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def text(name: str) -> bytes | None:
        values = array(name)
        if values is None:
            return None
        if values.size != 1:
            raise InvalidRequest(name, f"got {values.size} elements; send exactly one")
        return bytes(values.item())

    input_ids = array("input_ids")
    return RawRequest(
        text_input=text("text_input"),
        messages=text("messages"),
        input_ids=None if input_ids is None else input_ids.ravel().tolist(),
        canvas_template=text("canvas_template"),
        sampling_parameters=text("sampling_parameters"),
        stream=text("stream"),
    )
