"""The errors of a load test that its user can do something about."""

from __future__ import annotations


class InputError(Exception):
    """A file, option or field is at fault: the message names it, its limits and what to do."""


class TargetError(Exception):
    """A request, or the connection it needs, has failed.

    `code` is the name of a gRPC status, or HTTP_ and the number.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry_after_s = code, message, retry_after_s
