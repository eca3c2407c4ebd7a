"""What `triton_python_backend_utils` offers inside Triton's stub process, without Triton."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    pass


class TritonError(Exception):
    """The codes are numbers, as Triton's are; it has no others."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Metric:
    """As Triton's, it takes what its kind takes and refuses the rest."""

    kind: int
    labels: dict[str, str]
    buckets: list[float] | None
    value: float = 0.0
    observed: list[float] = field(default_factory=list)

    def set(self, value: float) -> None:
        assert self.kind == MetricFamily.GAUGE
        self.value = value

    def increment(self, value: float) -> None:
        assert self.kind == MetricFamily.COUNTER and value >= 0
        self.value += value

    def observe(self, value: float) -> None:
        assert self.kind == MetricFamily.HISTOGRAM
        self.observed.append(value)


class MetricFamily:
    """Remembers every metric of every family."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    made: ClassVar[list[tuple[str, Metric]]] = []

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert kind in (self.COUNTER, self.GAUGE, self.HISTOGRAM) and description
        self._name, self._kind = name, kind

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        assert all(isinstance(text, str) for pair in labels.items() for text in pair)
        assert (buckets is not None) == (self._kind == self.HISTOGRAM)
        assert buckets is None or buckets == sorted(set(buckets))
        metric = Metric(self._kind, labels, buckets)
        MetricFamily.made.append((self._name, metric))
        return metric


@dataclass(frozen=True)
class Tensor:
    name: str
    array: npt.NDArray[Any]

    def as_numpy(self) -> npt.NDArray[Any]:
        return self.array


@dataclass(frozen=True)
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None


@dataclass
class Sender:
    """Remembers the responses with their flags; `done` is set by the final one."""

    cancelled: bool = False
    sent: list[tuple[InferenceResponse, int]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.done.is_set(), "a response after the final one"
        self.sent.append((response, flags))
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        assert not self.done.is_set(), "Triton dies of this"
        return self.cancelled


@dataclass(frozen=True)
class InferenceRequest:
    tensors: dict[str, npt.NDArray[Any]]
    id: str = ""
    sender: Sender = field(default_factory=Sender)
    metadata: dict[str, str] = field(default_factory=dict)  # what Triton forwards of it

    def parameters(self) -> str:
        return json.dumps(self.metadata)

    def request_id(self) -> str:
        return self.id

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    array = request.tensors.get(name)
    return None if array is None else Tensor(name, array)


def texts(*values: str | bytes) -> npt.NDArray[np.object_]:
    """A BYTES tensor as the stub sees it."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(encoded, dtype=np.object_)


def outputs(response: InferenceResponse) -> dict[str, Any]:
    """Arrays by name; text is decoded."""
    assert response.error is None
    arrays = {tensor.name: tensor.as_numpy() for tensor in response.output_tensors}
    return {
        name: array.item().decode() if array.dtype == np.object_ else array.tolist()
        for name, array in arrays.items()
    }


def failure_of(sender: Sender) -> TritonError:
    """The one response, which is an error and final."""
    assert sender.done.wait(20)
    [(response, flags)] = sender.sent
    assert response.output_tensors == []
    assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
    assert response.error is not None
    return response.error
