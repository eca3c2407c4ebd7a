"""The HTTP application: which endpoint does what.

Knows paths and status codes; what they do is in the modules beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from dgemma import __version__
from dgemma.front import info
from dgemma.front.answers import chat_events, text_events
from dgemma.front.bodies import ChatBody, CompletionBody, InfillBody
from dgemma.front.doorway import Doorway
from dgemma.front.errors import HttpError
from dgemma.front.fields import Body, read_body
from dgemma.front.formats import ChatFormat, TextFormat
from dgemma.front.health import Judge
from dgemma.front.metrics import CONTENT_TYPE, Own, joined, of_triton
from dgemma.front.service import FrontService, json_response
from dgemma.front.settings import FrontSettings
from dgemma.front.sse import CLIENT_GONE, ClientGone
from dgemma.front.supervised import beating, starts

logger = logging.getLogger(__name__)

_SCRAPE_S = 1.0  # for a readiness that has to be found out first
_PAGE = Path(__file__).with_name("page.html")
# The page needs nothing from anywhere else, and gets nothing.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def create_app(settings: FrontSettings, readiness: Judge) -> ASGIApp:
    """The application; Triton need not be there yet."""
    service: FrontService

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal service
        service = FrontService(settings, readiness)
        async with beating(settings.supervised):
            yield
        await service.close()

    # FastAPI's own pages of documentation load their scripts from elsewhere.
    app = FastAPI(
        title="DiffusionGemma",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    doorway = Doorway(app, settings.max_body_bytes, settings.read_timeout_s)
    _handle_errors(app)

    @app.post("/v1/chat/completions", **_takes(ChatBody))
    async def chat_completions(request: Request) -> Response:
        body = read_body(ChatBody, await request.body())
        question = service.question(request, body, body.prompt_options())
        events = chat_events(
            service.triton, question, body.functions, parallel=body.parallel_tool_calls
        )
        shape = ChatFormat(service.identity(request, "chatcmpl"), body.include_usage)
        return await service.respond(request, body, question, events, shape)

    @app.post("/v1/completions", **_takes(CompletionBody))
    async def completions(request: Request) -> Response:
        return await text(request, read_body(CompletionBody, await request.body()))

    @app.post("/v1/infill", **_takes(InfillBody))
    async def infill(request: Request) -> Response:
        return await text(request, read_body(InfillBody, await request.body()))

    async def text(request: Request, body: CompletionBody | InfillBody) -> Response:
        question = service.question(request, body, body.prompt_options())
        shape = TextFormat(service.identity(request, "cmpl"), body.include_usage)
        events = text_events(service.triton, question)
        return await service.respond(request, body, question, events, shape)

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(n) for n in settings.model_names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in settings.model_names:
            raise HttpError(404, f"there is no model {name!r} here", "model", "model_not_found")
        return json_response(_model(name))

    @app.get("/v1/health/live")
    async def live() -> Response:
        return _health("live", "the front is running", 200)

    @app.get("/v1/health/ready")
    async def ready() -> Response:
        trouble = await readiness.trouble(service.triton)
        if trouble is not None:
            return _health("not_ready", trouble, 503)
        return _health("ready", "the model answers", 200)

    @app.get("/v1/metadata")
    async def metadata() -> Response:
        page = await of_triton(settings.triton_metrics_url)
        return json_response(info.metadata(settings.model_names, page or ""))

    @app.get("/v1/manifest")
    async def manifest() -> Response:
        root = settings.models or settings.cache
        return json_response(await asyncio.to_thread(info.manifest, root))

    @app.get("/v1/version")
    async def version() -> Response:
        return json_response(info.version())

    @app.get("/v1/license")
    async def license_() -> Response:
        return json_response(info.license_info())

    @app.get("/v1/metrics")
    async def metrics_page() -> Response:
        is_ready = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_SCRAPE_S):
                is_ready = await readiness.trouble(service.triton) is None
        own = Own(doorway.requests, is_ready, starts(settings.supervised))
        page = joined(own, await of_triton(settings.triton_metrics_url))
        return PlainTextResponse(page, media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=headers)

    return doorway


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def ours(request: Request, error: HttpError) -> Response:
        return json_response(error.body(), error.status, error.headers)

    @app.exception_handler(ClientGone)
    @app.exception_handler(ClientDisconnect)  # in the midst of a body
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        what = {404: "no such endpoint", 405: "no such method"}.get(error.status_code, error.detail)
        message = f"{request.method} {request.url.path}: {what}"
        return json_response(HttpError(error.status_code, message).body(), error.status_code)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        known = request.state.request_id
        logger.error("request %s failed", known, exc_info=error, extra={"request_id": known})
        return json_response(HttpError(500, "the server failed; its log says why").body(), 500)


def _takes(body: type[Body]) -> dict[str, Any]:
    """What OpenAPI is told of an endpoint that reads its body itself."""
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "dgemma", "root": name}


def _health(status: str, message: str, code: int) -> Response:
    return json_response({"object": "health.response", "message": message, "status": status}, code)
