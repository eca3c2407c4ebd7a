"""Errors in OpenAI's shape, and the HTTP status that a gRPC status becomes.

Knows statuses, types and codes; knows nothing of endpoints.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from dgemma.client_errors import ClientError, Overloaded

_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 503,  # by the server: a client that has left is told nothing
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# Status -> type and code as OpenAI's API has them, where it has them.
_KINDS = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", None),
    405: ("invalid_request_error", None),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "timeout"),
}
# The service's errors begin with the input at fault.
_FIELD = re.compile(r"((?:[A-Za-z_]\w*)(?:\.\w+|\[\d+\])*): ")
_TRY_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRY_UNKNOWN_S = 1


@dataclass(eq=False)
class HttpError(Exception):
    """An error response; `param` is the field of the body that is at fault."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        wait = self.retry_after_s
        if wait is None and self.status in _TRY_AGAIN:
            wait = _RETRY_UNKNOWN_S
        self.headers = {} if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
        if self.status == HTTPStatus.UNAUTHORIZED:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        kind, code = _KINDS.get(self.status, ("server_error", None))
        error = {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code or code,
        }
        return {"error": error}


def refused(param: str | None, message: str, code: str | None = None) -> HttpError:
    """A 400 that names the field."""
    return HttpError(400, f"{param}: {message}" if param else message, param, code)


def from_client_error(error: ClientError, names: dict[str, str]) -> HttpError:
    """What the service or gRPC said; `names` are its inputs as the client's body calls them."""
    status = _HTTP_STATUS.get(error.code, 500)
    message, param = error.message, None
    if status == HTTPStatus.BAD_REQUEST and (named := _FIELD.match(message)):
        param = _theirs(named[1], names)
        message = f"{param}: {message[named.end() :]}"
    wait = error.retry_after_s if isinstance(error, Overloaded) else None
    return HttpError(status, message, param, retry_after_s=wait)


def _theirs(field: str, names: dict[str, str]) -> str:
    field = field.removeprefix("sampling_parameters.")
    root = re.split(r"[.\[]", field, maxsplit=1)[0]
    renamed = names.get(root, root) + field[len(root) :]
    return renamed.removeprefix("messages.") if renamed.startswith("messages.") else renamed
