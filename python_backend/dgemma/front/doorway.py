"""What holds for every request: an id, limits of size and time, a line in the log.

Knows ASGI; knows nothing of endpoints. Neither prompts nor keys are logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections import Counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgemma.front.errors import HttpError
from dgemma.front.sse import CLIENT_GONE

logger = logging.getLogger(__name__)

_ID = re.compile(r"[\w.\-]{1,128}", re.ASCII)


class Doorway:
    """The outermost ASGI application. `requests` counts answers by endpoint and status."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, read_timeout_s: float) -> None:
        self._app = app
        self.requests: Counter[tuple[str, int]] = Counter()
        self._max_body_bytes, self._read_timeout_s = max_body_bytes, read_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, self._max_body_bytes, self._read_timeout_s)
        try:
            await self._app(scope, visit.receiving(receive), visit.sending(send))
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self.requests[endpoint, visit.status] += 1
            logger.info(
                "request %s",
                json.dumps(
                    {
                        "request_id": visit.request_id,
                        "method": scope["method"],
                        "endpoint": endpoint,
                        "status": visit.status,
                        "ms": round((time.monotonic() - visit.began) * 1e3, 1),
                    }
                ),
                extra={"request_id": visit.request_id},
            )


class _Visit:
    """One request on its way in and out."""

    def __init__(self, scope: Scope, max_body_bytes: int, read_timeout_s: float) -> None:
        self.began = time.monotonic()
        self.status = CLIENT_GONE  # until there is another
        headers: dict[bytes, bytes] = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        declared = headers.get(b"content-length", b"0").decode("latin-1")
        self._declared = int(declared) if declared.isdecimal() else 0
        self._max_body_bytes, self._received = max_body_bytes, 0
        self._deadline = asyncio.get_running_loop().time() + read_timeout_s
        self._read_timeout_s = read_timeout_s
        self._reading = True

    def receiving(self, receive: Receive) -> Receive:
        async def limited() -> Message:
            if not self._reading:
                return await receive()
            self._check_size(self._declared)
            try:
                async with asyncio.timeout_at(self._deadline):
                    message = await receive()
            except TimeoutError:
                self._reading = False
                raise HttpError(
                    408, f"the body was not complete within {self._read_timeout_s:g} s"
                ) from None
            self._received += len(message.get("body", b""))
            self._check_size(self._received)
            self._reading = bool(message.get("more_body", False))
            return message

        return limited

    def sending(self, send: Send) -> Send:
        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                header = (b"x-request-id", self.request_id.encode())
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        return named

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            self._reading = False
            raise HttpError(
                413,
                f"the body has {size} bytes or more; at most {self._max_body_bytes} are accepted",
            )
