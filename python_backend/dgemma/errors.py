"""The errors of this software and the gRPC status each one becomes.

Knows codes and messages; knows nothing of transport.
"""

from __future__ import annotations


class DgemmaError(Exception):
    """An error with a gRPC status name; its text is written for the person who reads it."""

    grpc_code = "INTERNAL"


class InvalidRequest(DgemmaError):
    """The request is at fault; `field` is the input that must change."""

    grpc_code = "INVALID_ARGUMENT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Unauthenticated(DgemmaError):
    """Nobody known has asked."""

    grpc_code = "UNAUTHENTICATED"


class ResourceExhausted(DgemmaError):
    """There is no room at present; `retry_after_s` says when to try again, in seconds.

    The text says it too, because an error on Triton's streams is nothing but text.
    """

    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(f"{message}; retry after {max(0.1, retry_after_s):.1f} s")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(DgemmaError):
    """The answer would come too late, or has."""

    grpc_code = "DEADLINE_EXCEEDED"


class Unavailable(DgemmaError):
    """The service is starting, stopping or dead; another replica may take the request at once."""

    grpc_code = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(f"{message}; retry after {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class ConfigurationError(DgemmaError):
    """A file or the environment is at fault; the server refuses to start."""

    grpc_code = "FAILED_PRECONDITION"


class EngineFailure(DgemmaError):
    """A pass failed; the requests in it end with this error."""
