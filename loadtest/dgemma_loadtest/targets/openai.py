"""Any server that streams as OpenAI's does: this service's own front, vLLM, TensorRT-LLM, others.

Knows chat completions, server-sent events and this service's additions to them; knows nothing of
when a request is sent.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from dgemma_loadtest.clock import Clock
from dgemma_loadtest.errors import InputError, TargetError
from dgemma_loadtest.jobs import Job
from dgemma_loadtest.records import Usage
from dgemma_loadtest.run_file import Server
from dgemma_loadtest.targets.base import CONNECT_TIMEOUT_S, Answer, Connection, End, Piece
from dgemma_loadtest.targets.contract import usage_of
from dgemma_loadtest.targets.messages import characters_of, counted, error_event, labels_of

# What only this service knows; others would refuse it.
OURS = frozenset(
    (
        *("preset", "max_denoising_steps", "t_min", "t_max", "entropy_bound"),
        *("stability_threshold", "confidence_threshold", "priority", "deadline_s"),
    )
)


class OpenAITarget:
    """`base` is the URL in front of /v1; `model` None: the first that the server lists."""

    def __init__(
        self,
        base: str,
        clock: Clock,
        *,
        keys: Mapping[str, str] | None = None,
        model: str | None = None,
        ca: Path | None = None,
    ) -> None:
        self.url = base.rstrip("/").removesuffix("/v1")
        self._clock, self._keys, self._model, self._ca = clock, dict(keys or {}), model, ca
        self._ours: bool | None = None
        self._session: aiohttp.ClientSession | None = None

    async def connect(self, count: int) -> list[Connection]:
        """Connections are made by need and kept: an idle one is used before another is made."""
        if self._model is None or self._ours is None:
            await self._introduce()
        return [OpenAIConnection(self, self._clock) for _ in range(count)]

    async def describe(self) -> Server:
        await self._introduce()
        models = await self._json("/v1/models")
        metadata = await self._json("/v1/metadata")
        first = _first(models)
        engine = labels_of(await self._text("/v1/metrics"), "dgemma_engine_info")
        simulated = engine.get("simulated")
        return Server(
            kind="openai",
            name=first.get("owned_by"),
            version=metadata.get("version"),
            model=self._model,
            profile=engine.get("profile") or metadata.get("selectedModelProfileId") or None,
            target=engine.get("target"),
            precision=engine.get("precision"),
            simulated=simulated,
            max_context=first.get("max_model_len"),
            more={"models": models, "release": metadata.get("version")},
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def request(self, job: Job) -> tuple[str, dict[str, Any]]:
        """The endpoint and the body."""
        ours, infill = bool(self._ours), job.task == "infill" and job.prompt.template is not None
        text = job.prompt.text
        if infill and not ours:
            text = (
                f"{text}\n\nReplace every gap <|gap:N|> by about N tokens:\n{job.prompt.template}"
            )
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": job.seed,
        }
        if infill and ours:
            body["canvas_template"] = job.prompt.template
        elif job.max_new_tokens is not None:
            body["max_tokens"] = job.max_new_tokens
        body |= {key: value for key, value in job.sampling.items() if ours or key not in OURS}
        return ("/v1/infill" if infill and ours else "/v1/chat/completions"), body

    def headers(self, tenant: str) -> dict[str, str]:
        key = self._keys.get(tenant)
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=_ssl(self._ca)),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                auto_decompress=False,
                read_bufsize=1 << 20,
            )
        return self._session

    async def _introduce(self) -> None:
        """Who is there: its model, and whether it is this service."""
        listed = await self._json("/v1/models", needed=True)
        self._ours = bool(await self._json("/v1/manifest")) or "modelInfo" in await self._json(
            "/v1/metadata"
        )
        if self._model is None:
            self._model = _first(listed).get("id")
        if self._model is None:
            raise TargetError("NOT_FOUND", f"{self.url}/v1/models lists no model; give --model")

    async def _json(self, path: str, *, needed: bool = False) -> dict[str, Any]:
        try:
            found = json.loads(await self._text(path, needed=needed))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def _text(self, path: str, *, needed: bool = False) -> str:
        """Empty where there is no answer, unless it is needed. Raises TargetError then."""
        headers = self.headers(next(iter(self._keys), ""))
        try:
            async with (
                asyncio.timeout(CONNECT_TIMEOUT_S),
                self.session().get(self.url + path, headers=headers) as response,
            ):
                if response.status == 200:
                    return await response.text()
                said = f"{path} answers {response.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            said = f"no server answers at {self.url} ({type(error).__name__}: {error})"
        if needed:
            raise TargetError("UNAVAILABLE", said)
        return ""


class OpenAIConnection:
    """One user of a target; TCP connections are the session's."""

    def __init__(self, target: OpenAITarget, clock: Clock) -> None:
        self._target, self._clock = target, clock

    async def close(self) -> None:
        pass

    async def ask(self, job: Job) -> Answer:
        path, body = self._target.request(job)
        url, headers = self._target.url + path, self._target.headers(job.tenant)
        try:
            async with (
                asyncio.timeout(job.timeout_s),
                self._target.session().post(url, json=body, headers=headers) as response,
            ):
                if response.status != 200:
                    raise await _refused(response)
                async for message in self._messages(response):
                    yield message
        except aiohttp.ClientError as error:
            raise TargetError("UNAVAILABLE", f"{type(error).__name__}: {error}") from None

    async def _messages(
        self, response: aiohttp.ClientResponse
    ) -> AsyncGenerator[Piece | End, None]:
        usage, finish, block, at_s = Usage(), None, 0, self._clock.now()
        ours = complete = False
        async for at_s, data in self._events(response):
            if data == b"[DONE]":
                complete = True
                break
            event = json.loads(data)
            if "error" in event:
                raise error_event(event["error"])
            ours = ours or str(event.get("system_fingerprint", "")).startswith("dgemma-")
            for choice in event.get("choices") or ():
                finish = choice.get("finish_reason") or finish
                if characters := characters_of(choice):
                    yield Piece(
                        at_s,
                        characters,
                        "block" if ours else "text",
                        block if ours else None,
                    )
                    block += 1
            if said := event.get("dgemma"):
                usage = usage_of(said)
            elif (tokens := event.get("usage")) and usage.useful_tokens is None:
                usage = counted(usage, tokens)
        if not complete and finish is None:
            raise TargetError("UNAVAILABLE", "the stream broke off before its end")
        yield End(at_s, finish, usage)

    async def _events(
        self, response: aiohttp.ClientResponse
    ) -> AsyncGenerator[tuple[float, bytes], None]:
        """The data of each event, with the time at which its last byte came."""
        rest = b""
        while content := await response.content.readany():
            at_s = self._clock.now()
            *lines, rest = (rest + content).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield at_s, line[5:].strip()


async def _refused(response: aiohttp.ClientResponse) -> TargetError:
    after = response.headers.get("Retry-After", "")
    text = (await response.text())[:500]
    return TargetError(f"HTTP_{response.status}", text, float(after) if after.isdecimal() else None)


def _first(models: Mapping[str, Any]) -> dict[str, Any]:
    listed = models.get("data") or [{}]
    return dict(listed[0])


def _ssl(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"tls-ca: cannot read {ca}: {error}") from None
