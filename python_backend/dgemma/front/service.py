"""Questions to the service and their answers over HTTP, whole or streamed.

Knows who asks and what becomes of errors; knows nothing of single endpoints.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dgemma.client_errors import ClientError
from dgemma.front import sse
from dgemma.front.answers import Events
from dgemma.front.errors import HttpError, from_client_error
from dgemma.front.fields import Body
from dgemma.front.formats import Format, Identity
from dgemma.front.health import Judge
from dgemma.front.settings import FrontSettings
from dgemma.front.triton import Question, Triton

logger = logging.getLogger(__name__)

_PRINTABLE = re.compile(r"[ -~]+")


class FrontService:
    """What the endpoints share. To be made on the event loop that it is used on."""

    def __init__(self, settings: FrontSettings, readiness: Judge) -> None:
        self.settings, self.readiness = settings, readiness
        self.triton = Triton(settings.triton_url, readiness.answered, settings.tls)

    async def close(self) -> None:
        await self.triton.close()

    def question(self, request: Request, body: Body, prompt: dict[str, Any]) -> Question:
        """Raises HttpError where the model is another one, or fields contradict each other."""
        names = self.settings.model_names
        if body.model is not None and body.model not in names:
            raise HttpError(
                404,
                f"model: there is no model {body.model!r} here; there is {', '.join(names)}",
                "model",
                "model_not_found",
            )
        sampling, fields = body.sampling()
        return Question(
            prompt.pop("prompt", None),
            {**prompt, **sampling, "canvas_template": body.canvas_template},
            "draft" if body.stream == "draft" else "block",
            self.settings.timeout_s,
            request.state.request_id,
            _authorization(request),
            fields,
        )

    def identity(self, request: Request, prefix: str) -> Identity:
        identifier = f"{prefix}-{request.state.request_id}"
        return Identity(identifier, int(time.time()), self.settings.model_names[0])

    async def respond(
        self, request: Request, body: Body, question: Question, events: Events, shape: Format
    ) -> Response:
        """The whole answer, or its stream once there is something to send.

        Raises HttpError for what is known before that, and ClientGone.
        """
        chunks = _chunks(events, shape)
        try:
            if body.stream:
                first = await sse.unless_gone(request.receive, anext(chunks))
                return sse.EventStream(chunks, lambda e: _failed(e, question), first)
            whole = await sse.unless_gone(request.receive, shape.whole(events))
        except ClientError as error:
            raise from_client_error(error, question.names) from None
        finally:
            if not body.stream:
                await events.aclose()
        return json_response(whole)


def json_response(value: object, status: int = 200, headers: Any = None) -> Response:
    return Response(sse.json_bytes(value), status, headers, media_type="application/json")


async def _chunks(events: Events, shape: Format) -> AsyncGenerator[bytes, None]:
    """Nothing before the first event: until then an error can be a status."""
    opening = b"".join(map(sse.event, shape.opening()))
    async with aclosing(events):
        async for event in events:
            yield opening + b"".join(map(sse.event, shape.chunks(event)))
            opening = b""


def _failed(error: Exception, question: Question) -> bytes:
    if isinstance(error, ClientError):
        error = from_client_error(error, question.names)
    if not isinstance(error, HttpError):
        logger.error(
            "request %s: no answer",
            question.request_id,
            exc_info=error,
            extra={"request_id": question.request_id},
        )
        error = HttpError(500, "the server failed; its log says why")
    return sse.event(error.body())


def _authorization(request: Request) -> str | None:
    value = request.headers.get("authorization")
    if value is not None and not _PRINTABLE.fullmatch(value):
        raise HttpError(401, "authorization: must be `Bearer KEY` in printable ASCII")
    return value
