"""A key, a prompt and an answer that must not be found where operators look.

Knows ways in which they go through the service, well and badly; knows nothing of what is logged.
"""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import tritonclient.grpc as triton

from dgemma.chat import ChatTokenizer
from dgemma.client import Client
from dgemma.client_errors import ClientError
from tests.accept.main_job import Line
from tests.accept.surface_service import Surface, surface
from tests.dgemma.tenants.tenant_files import file_of, key_of, tenant

KEY, STRANGER = key_of("canary"), key_of("stranger")
PROMPT, ANSWER = "canaryprompt7319", "canaryanswer9137"
LIMITS = {"max_denoising_steps": 2, "seed": 1}
MESSAGES = [{"role": "user", "content": PROMPT}]
BROKEN_CALL = f"<|tool_call>call:{ANSWER}{{{{<tool_call|>"
REQUEST_ID = "canary-was-here"
LEVELS, FORMATS = ("info", "debug"), {"plain": "0", "JSON": "1"}


@dataclass(frozen=True)
class Secret:
    """One of them, in every spelling in which it would be known again."""

    name: str
    spellings: tuple[str, ...]

    @classmethod
    def of(cls, name: str, text: str, tokenizer: ChatTokenizer) -> Secret:
        ids = [str(token_id) for token_id in tokenizer.encode(text)]
        coded = base64.b64encode(text.encode()).decode().rstrip("=")
        # Cut off, as lines may be; a key's first characters tell it from others, and are public.
        part = text[13:] if name == "key" else text[:12]
        listed = (separator.join(ids) for separator in (", ", ",", " "))
        return cls(name, (text, part, coded, text.encode().hex(), *listed))

    def found(self, text: str) -> bool:
        return any(spelling in text for spelling in self.spellings)


def canary(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """A line for each way to log."""
    tokenizer = ChatTokenizer.from_checkpoint(checkpoint)
    secrets = [
        Secret.of(name, text, tokenizer)
        for name, text in (("key", KEY), ("prompt", PROMPT), ("answer", ANSWER))
    ]
    secrets.append(Secret.of("key", STRANGER, tokenizer))
    for level, (form, flag) in itertools.product(LEVELS, FORMATS.items()):
        with tempfile.TemporaryDirectory() as directory:
            scratch = Path(directory)
            (scratch / "tenants.yaml").write_text(file_of(tenant("acme", KEY)))
            environment = {
                "NIM_LOG_LEVEL": level,
                "NIM_JSONL_LOGGING": flag,
                "DGEMMA_TENANTS": str(scratch / "tenants.yaml"),
                "DGEMMA_LEDGER": str(scratch / "ledger"),
                "DGEMMA_PROBE_API_KEY": KEY,
            }
            with surface(engine, checkpoint, scratch, environment) as service:
                if level == "debug":
                    _loosen_tongue(service)
                answers = "".join(_sing(service) for _ in range(rounds))
                metrics = _metrics(service)
            log = service.log.read_text(errors="replace")
            ledger = "".join(f.read_text() for f in sorted((scratch / "ledger").glob("*.jsonl")))
        places = {"log": log, "metrics": metrics, "ledger": ledger}
        found = [f"{s.name} in {p}" for p, text in places.items() for s in secrets if s.found(text)]
        # Else nothing would be found wherever it was.
        heard = REQUEST_ID in log and "acme" in ledger and ANSWER in answers
        yield Line(
            f"canaries in log ({level}, {form}), metrics, ledger",
            ", ".join(found) or f"none in {len(log.splitlines())} lines"
            if heard
            else "the requests are in neither log nor ledger",
            "none",
            heard and not found,
        )


def _loosen_tongue(service: Surface) -> None:
    """Triton says all it can, as whoever may look into this machine's processes can have it do."""
    command = Path(f"/proc/{service.pids['triton']}/cmdline").read_text().split("\0")
    (restricted,) = (word for word in command if word.startswith("--grpc-restricted-protocol="))
    name, _, value = restricted.rpartition(":")[2].partition("=")
    with triton.InferenceServerClient(service.grpc_url) as client:
        headers = {f"triton-grpc-protocol-{name}": value}
        client.update_log_settings({"log_verbose_level": 4}, headers=headers)


def _sing(service: Surface) -> str:
    """Everything that was answered."""
    return "".join(itertools.chain(_over_http(service.http_url), _over_grpc(service.grpc_url)))


def _over_http(url: str) -> Iterator[str]:
    chat, text, infill = "/v1/chat/completions", "/v1/completions", "/v1/infill"
    said = {"messages": MESSAGES, "canvas_template": ANSWER, **LIMITS}
    tools = [{"type": "function", "function": {"name": PROMPT, "parameters": {"const": PROMPT}}}]
    broken = {**said, "canvas_template": BROKEN_CALL, "tools": tools}
    bodies: list[tuple[str, Any]] = [
        (chat, said),
        (chat, {**said, "stream": True}),
        (chat, {**said, "stream": "draft"}),
        (infill, {"prompt": PROMPT, "canvas_template": f"{ANSWER}<|gap:3|>", **LIMITS}),
        (text, {"prompt": PROMPT, "stop": [ANSWER], "max_tokens": 9, **LIMITS}),
        # A failure for every stage that a request passes.
        (chat, broken),
        (chat, {**broken, "stream": True}),
        (chat, {**said, "seed": PROMPT}),
        (chat, {**said, "model": PROMPT}),
        (chat, {**said, PROMPT: ANSWER}),
        (chat, {**said, "messages": [{"role": PROMPT, "content": ANSWER}]}),
        (chat, {**said, "messages": [{"role": "user", "content": PROMPT, "tool_calls": ANSWER}]}),
        (chat, {**said, "chat_template_kwargs": {"messages": PROMPT}}),
        (text, {"prompt": PROMPT * 200, "canvas_template": ANSWER}),
        (text, {"prompt": PROMPT + "\ud800"}),
        (text, {"prompt": PROMPT, "deadline_s": 1e-9, "max_tokens": 300}),
        (infill, {"prompt": PROMPT, "canvas_template": f"{ANSWER}<|gap:{PROMPT}|>"}),
    ]
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": REQUEST_ID}
    with httpx2.Client(base_url=url, timeout=60, headers=headers) as http:
        for path, body in bodies:
            yield http.post(path, content=json.dumps(body)).text
        yield http.post(chat, content=f'{{"messages": "{PROMPT}'.encode()).text
        yield http.post(chat, content=PROMPT.encode() + b"\xff").text
        yield http.get("/v1/models", params={"key": KEY}).text
        for wrong in (STRANGER, f"Basic {KEY}", f"Bearer {STRANGER}", f"Bearer {KEY} {KEY}"):
            yield http.post(chat, json=said, headers={"authorization": wrong}).text
        with http.stream("POST", chat, json={**said, "stream": True}) as left:
            yield next(left.iter_text())


def _over_grpc(url: str) -> Iterator[str]:
    good: dict[str, Any] = {"messages": MESSAGES, "canvas_template": ANSWER, **LIMITS}
    asked: list[tuple[str, dict[str, Any]]] = [
        (KEY, good),
        (STRANGER, good),
        (KEY, {**good, "preset": PROMPT}),
        (KEY, {**good, "messages": [{"role": PROMPT, "content": ANSWER}]}),
        (KEY, {**good, "canvas_template": f"{ANSWER}<|gap:{PROMPT}|>"}),
        (KEY, {**good, "stop": [PROMPT] * 1000}),
    ]
    for key, options in asked:
        with Client(url, api_key=key) as client, suppress(ClientError):
            yield client.generate(**options, timeout_s=60).text


def _metrics(service: Surface) -> str:
    pages = (service.metrics_url, f"{service.http_url}/v1/metrics")
    return "".join(httpx2.get(page, timeout=20).text for page in pages)
