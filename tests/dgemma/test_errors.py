from __future__ import annotations

import grpc
import pytest

from dgemma import errors
from dgemma.errors import (
    ConfigurationError,
    DeadlineExceeded,
    DgemmaError,
    EngineFailure,
    InvalidRequest,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

EXAMPLES = [
    (InvalidRequest("seed", "must be an integer"), "INVALID_ARGUMENT"),
    (Unauthenticated("no key"), "UNAUTHENTICATED"),
    (ResourceExhausted("no room", 1.5), "RESOURCE_EXHAUSTED"),
    (DeadlineExceeded("too late"), "DEADLINE_EXCEEDED"),
    (Unavailable("stopping"), "UNAVAILABLE"),
    (ConfigurationError("no such file"), "FAILED_PRECONDITION"),
    (EngineFailure("a pass failed"), "INTERNAL"),
]


@pytest.mark.parametrize(("error", "code"), EXAMPLES)
def test_each_error_becomes_a_status_that_grpc_has(error: DgemmaError, code: str) -> None:
    assert error.grpc_code == code
    assert grpc.StatusCode[code]


def test_every_error_of_the_service_has_an_example_here() -> None:
    defined = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert {type(error) for error, _ in EXAMPLES} == defined - {DgemmaError}
    assert all(issubclass(kind, DgemmaError) for kind in defined)


def test_an_invalid_request_names_its_field_first() -> None:
    error = InvalidRequest("sampling_parameters.seed", "got -1; allowed: 0 to 9")
    assert str(error) == "sampling_parameters.seed: got -1; allowed: 0 to 9"
    assert error.field == "sampling_parameters.seed"


def test_no_room_says_when_to_try_again() -> None:
    error = ResourceExhausted("the queue is full", retry_after_s=2.0)
    assert str(error) == "the queue is full; retry after 2.0 s"
    assert error.retry_after_s == 2.0


def test_no_room_never_says_to_try_again_at_once() -> None:
    assert str(ResourceExhausted("full", 0.0)).endswith("retry after 0.1 s")
