"""What can go wrong for a client, and how a gRPC status becomes one of these errors.

Knows status codes and what to do about each; knows nothing of requests or tensors.
"""

from __future__ import annotations

import re
from typing import Any

# How the service begins an error, so that its status survives Triton's streams, which carry a text
# alone. (Triton can be asked for a gRPC status instead, by the metadata `triton_grpc_error`; in
# 24.10 a refused request then ends the whole server now and then.)
_STATUS = re.compile(r"\[([A-Z_]+)\] (.*)", re.DOTALL)
_RETRY_AFTER = re.compile(r"; retry after ([0-9.]+) s$")
RETRY_S = 1.0  # where nobody has said more
# Triton's own words where the model is not loaded; the service's errors never lack a status.
_NOT_LOADED = ("unknown model", "not ready", "not available", "is stopping", "stopped accepting")
# The gRPC core says these with UNAVAILABLE; other details are the server's own words.
_NEVER_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed")
_CONNECTION_LOST = ("Socket closed", "Connection reset", "Broken pipe", "Cancelling all calls")


class ClientError(Exception):
    """A request failed; `code` is the name of its gRPC status, `message` says why."""

    code = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code


class RequestRejected(ClientError):
    """The request is at fault: the message names the field and what it may be."""

    code = "INVALID_ARGUMENT"


class Unauthenticated(ClientError):
    """The server wants an API key, or does not know the one that was sent."""

    code = "UNAUTHENTICATED"


class Unavailable(ClientError):
    """No server answers, the connection was lost, or the server is starting or stopping."""

    code = "UNAVAILABLE"

    @property
    def retry_after_s(self) -> float:
        """Seconds until it is worth while to ask again."""
        said = _RETRY_AFTER.search(self.message)
        return RETRY_S if said is None else float(said[1])


class Overloaded(ClientError):
    """The server has no room at present, or the quota is used up; the message says when to try
    again.
    """

    code = "RESOURCE_EXHAUSTED"

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until there may be room; None where the server has not said."""
        said = _RETRY_AFTER.search(self.message)
        return None if said is None else float(said[1])


class DeadlineExceeded(ClientError):
    """The answer was not complete within `timeout_s`; the server has dropped the request."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(ClientError):
    """The request was cancelled, by this process or by the server."""

    code = "CANCELLED"


class ServerFailure(ClientError):
    """The server failed in a way that is not the request's fault."""

    code = "INTERNAL"


_BY_CODE: dict[str, type[ClientError]] = {
    error.code: error
    for error in (
        RequestRejected,
        Unauthenticated,
        Unavailable,
        Overloaded,
        DeadlineExceeded,
        Cancelled,
    )
}


def from_status(code: str, details: str, *, url: str, timeout_s: float) -> ClientError:
    """The error for a finished call's status name and details."""
    kind = _BY_CODE.get(code, ServerFailure)
    return kind(_explain(kind, details, url=url, timeout_s=timeout_s), code)


def from_message(message: str, *, url: str, timeout_s: float) -> ClientError:
    """The error for a text in a stream: the service's, or what Triton itself refused."""
    if (status := _STATUS.fullmatch(message)) is not None:
        code, details = status.groups()
        return from_status(code, details, url=url, timeout_s=timeout_s)
    if any(words in message for words in _NOT_LOADED):
        return Unavailable(f"the model is not loaded; it may be starting or stopping ({message})")
    return from_status("UNKNOWN", message, url=url, timeout_s=timeout_s)


def from_rpc_error(error: Any, *, url: str, timeout_s: float) -> ClientError:
    """The error for a `grpc.RpcError` that ended a call."""
    return from_status(error.code().name, error.details() or "", url=url, timeout_s=timeout_s)


def _explain(kind: type[ClientError], details: str, *, url: str, timeout_s: float) -> str:
    if kind is DeadlineExceeded and "deadline_s" not in details:  # else the service has said more
        return (
            f"no complete answer within {timeout_s:g} s (the timeout); "
            "ask for fewer tokens or allow more time"
        )
    if kind is Unavailable:
        if "andshake" in details:
            return (
                f"no TLS connection to {url}; is it a TLS endpoint, and is its certificate from "
                f"the authority of --tls-ca? ({details})"
            )
        if any(sign in details for sign in _NEVER_CONNECTED):
            return f"no server answers at {url}; start one with `make serve` ({details})"
        if any(sign in details for sign in _CONNECTION_LOST):
            return f"the connection to {url} was lost, the server may have stopped ({details})"
    return details or f"the server at {url} ended the request without saying why"
