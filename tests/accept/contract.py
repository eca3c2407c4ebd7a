"""Every HTTP endpoint against its schema, and OpenAI's own client.

Knows what each endpoint answers, as `schemas/` has it; knows nothing of load.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import openai
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from dgemma_build.demo.prompts import count_prompt
from tests.accept.aiperf import aiperf
from tests.accept.main_job import Line
from tests.accept.surface_service import MODEL, surface

SCHEMAS = Path(__file__).with_name("schemas")
MESSAGES: Any = [{"role": "user", "content": count_prompt(60)}]
COUNTED = " ".join(f"{number:02}" for number in range(60, 100))
TEMPLATE = "a = [<|gap:3|>]\n"
CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "seed": 5}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "count from 60", "seed": 5, "max_tokens": 40}
INFILL: dict[str, Any] = {"messages": MESSAGES, "canvas_template": TEMPLATE, "seed": 5}
CALL = '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
# What is sent: a whole answer, and the chunks of a streamed one.
GENERATING: dict[str, tuple[dict[str, Any], str, str]] = {
    "/v1/chat/completions": (CHAT, "chat", "chat_chunk"),
    "/v1/completions": (TEXT, "text", "text_chunk"),
    "/v1/infill": (INFILL, "text", "text_chunk"),
}
INFORMING = {
    "/v1/models": "models",
    f"/v1/models/{MODEL}": "model",
    "/v1/health/live": "health",
    "/v1/health/ready": "health",
    "/v1/metadata": "metadata",
    "/v1/manifest": "manifest",
    "/v1/version": "version",
    "/v1/license": "license",
}


@cache
def validator(name: str) -> Draft202012Validator:
    """Of one of the definitions in `schemas/`."""
    definitions: dict[str, Any] = {}
    for file in sorted(SCHEMAS.glob("*.json")):
        definitions |= json.loads(file.read_text())["$defs"]
    schema = {"$ref": f"#/$defs/{name}", "$defs": definitions}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def mistakes(name: str, value: object) -> list[str]:
    """Where `value` is not what the schema says."""
    found = validator(name).iter_errors(value)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def contract(engine: Path, checkpoint: Path, requests: int) -> Iterator[Line]:
    """A line for each endpoint and each client; `requests` are aiperf's."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        surface(engine, checkpoint, Path(scratch)) as service,
    ):
        with httpx2.Client(base_url=service.http_url, timeout=60) as http:
            yield from _answers(http)
            yield from _information(http)
        yield from openai_client(f"{service.http_url}/v1")
        yield from aiperf(service.http_url, checkpoint, requests, Path(scratch))


def _answers(http: httpx2.Client) -> Iterator[Line]:
    for path, (body, whole, chunk) in GENERATING.items():
        variants: list[tuple[str, Any]] = [
            (whole, http.post(path, json=body)),
            (chunk, http.post(path, json={**body, **STREAMED})),
            (chunk, http.post(path, json={**body, "stream": "draft"})),
            ("error", http.post(path, json={**body, "seed": -1})),
            ("error", http.post(path, content=b"{")),
        ]
        if whole == "chat":
            called = {**CHAT, "canvas_template": CALL, "tools": TOOLS}
            variants += [
                (whole, http.post(path, json=called)),
                (chunk, http.post(path, json={**called, "stream": True})),
            ]
        wrong, objects = [], 0
        for schema, answered in variants:
            if answered.is_success == (schema == "error"):
                wrong.append(f"{answered.status_code} {answered.text[:200]}")
                continue
            values = _events(answered.text) if schema == chunk else [answered.json()]
            objects += len(values)
            wrong += [f"{schema}{m}" for value in values for m in mistakes(schema, value)]
        yield _line(f"POST {path}", wrong, f"{objects} objects")


def _information(http: httpx2.Client) -> Iterator[Line]:
    for path, schema in INFORMING.items():
        answered = http.get(path)
        wrong = mistakes(schema, answered.json())
        if not answered.is_success:
            wrong.append(str(answered.status_code))
        yield _line(f"GET {path}", wrong, "1 object")
    page = http.get("/v1/metrics")
    read = _families(page.text)
    yield _line("GET /v1/metrics", mistakes("metrics", read), f"{len(read)} metrics")
    document = http.get("/openapi.json").json()
    described = {path for path in document["paths"] if "{" not in path}
    asked = {*GENERATING, *INFORMING, "/v1/metrics"} - {f"/v1/models/{MODEL}"}
    wrong = sorted(described ^ asked)
    yield _line("  endpoints described and not asked, or not described", wrong, "none")
    missing = http.get("/v1/nothing")
    yield _line("GET what is not there", mistakes("error", missing.json()), "1 object")


def openai_client(base_url: str) -> Iterator[Line]:
    """OpenAI's client, whose models check what comes, whole and streamed: the same answer."""
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        chat, text = client.chat.completions.create, client.completions.create
        checks: list[tuple[str, Callable[[], bool]]] = [
            ("chat", lambda: chat(**CHAT).choices[0].message.content == COUNTED),
            ("chat, streamed", lambda: _joined_chat(chat(**CHAT, **STREAMED)) == COUNTED),
            (
                "completion, streamed as whole",
                lambda: (
                    "".join(c.choices[0].text for c in text(**TEXT, stream=True))
                    == text(**TEXT).choices[0].text
                ),
            ),
            ("models", lambda: [m.id for m in client.models.list()] == [MODEL]),
            ("refusal", lambda: _refused(lambda: chat(**{**CHAT, "seed": -1}))),
        ]
        wrong = [what for what, holds in checks if not holds()]
    yield _line(f"openai {openai.__version__}", wrong, f"{len(checks)} uses")


def _joined_chat(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def _refused(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except openai.BadRequestError as error:
        return error.param == "seed"
    return False


def _events(text: str) -> list[Any]:
    """The objects of a stream, which has to end as one does."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", ""), text[-200:]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _families(page: str) -> dict[str, Any]:
    return {
        family.name: {
            "type": family.type,
            "samples": [{"labels": s.labels, "value": s.value} for s in family.samples],
        }
        for family in text_string_to_metric_families(page)
    }


def _line(what: str, wrong: list[str], seen: str) -> Line:
    return Line(what, "; ".join(wrong[:3]) or seen, "as its schema says", not wrong)
