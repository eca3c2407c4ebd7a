"""HTTP requests that nobody should send, each made of a seed and a number.

Knows endpoints, bodies and headers; knows nothing of connections.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from dgemma.front.bodies import ChatBody, CompletionBody, InfillBody
from dgemma.front.fields import IGNORED, UNSUPPORTED
from tests.accept.contract import CALL, TOOLS
from tests.accept.fuzz_values import TEXTS, any_value, bruised, excessive, mutated
from tests.accept.http_exchange import Asked
from tests.accept.surface_service import MODEL

LIMITS = {"max_tokens": 8, "max_denoising_steps": 2, "seed": 1}
USER: list[dict[str, Any]] = [{"role": "user", "content": "count from 42"}]
HISTORY = [
    {"role": "system", "content": [{"type": "text", "text": "Be terse."}]},
    *USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]
CHAT, TEXT, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"
VALID: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": MODEL, "messages": USER, **LIMITS}),
    (CHAT, {"messages": USER, "stream": True, "stream_options": {"include_usage": True}, **LIMITS}),
    (CHAT, {"messages": USER, "tools": TOOLS, "tool_choice": "auto", "stream": "draft", **LIMITS}),
    (CHAT, {"messages": USER, "tools": TOOLS, "canvas_template": CALL}),
    (CHAT, {"messages": HISTORY, "chat_template_kwargs": {"enable_thinking": True}, **LIMITS}),
    (TEXT, {"model": MODEL, "prompt": "count", "stop": ["9", "z"], "preset": "fast", **LIMITS}),
    (TEXT, {"prompt": [2, 65, 66], "ignore_eos": True, "t_min": 0.4, "t_max": 0.8, **LIMITS}),
    (TEXT, {"prompt": "x", "priority": 0, "deadline_s": 20.0, "entropy_bound": 0.1, **LIMITS}),
    (INFILL, {"messages": USER, "canvas_template": "a = [<|gap:3|>]", "stream": True, "seed": 1}),
    (INFILL, {"prompt": "x", "canvas_template": "<|gap:9|>", "confidence_threshold": 0.1}),
]
FIELDS = sorted(
    {*ChatBody.model_fields, *CompletionBody.model_fields, *InfillBody.model_fields}
    | {*UNSUPPORTED, *IGNORED}
)
METHODS = ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "POST", "PRI", "get", "X-Y"]
PATHS = [
    *("/", "/v1", "/v1/models", "/v1/models/", "/v1/models/a/b", "/v1/metrics", "/v1/health/ready"),
    *(
        "/v1/health/live",
        "/v1/manifest",
        "/v1/metadata",
        "/v1/version",
        "/v1/license",
        "/openapi.json",
    ),
    *(
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "//v1//models",
        "/%",
    ),
    *(
        CHAT,
        TEXT,
        INFILL,
        "/v1/models?x=%00&x",
        "*",
        "http://elsewhere/v1/models",
        "/" + "a" * 9000,
    ),
]
GARBAGE = [
    *(
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 100,
    ),
    *(b"\r\n" * 50, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
    *(b"POST /v1/completions HTTP/1.1\nhost: x\n\n", b"GET / HTTP/1.1\r\nhost: x\r\n y: z\r\n\r\n"),
    *(b"SSH-2.0-OpenSSH_9.6\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
]


def request(seed: int, number: int) -> Asked:
    """The same for the same two numbers."""
    rng = random.Random(f"http {seed} {number}")
    makers: list[tuple[Callable[[random.Random], Asked], float]] = [
        (_changed_body, 60),
        (_bruised_body, 10),
        (_excess, 4),
        (_headers, 11),
        (_elsewhere, 8),
        (_garbage, 7),
    ]
    [make] = rng.choices([make for make, _ in makers], [weight for _, weight in makers])
    return make(rng)


def _message(
    path: str, body: bytes, method: str = "POST", headers: tuple[tuple[str, Any], ...] = ()
) -> bytes:
    """Any header given replaces ours of that name."""
    ours = {"host": "x", "connection": "close", "content-type": "application/json"}
    ours["content-length"] = str(len(body))
    kept = {name: value for name, value in ours.items() if name not in {n for n, _ in headers}}
    lines = [f"{method} {path} HTTP/1.1".encode()]
    for name, value in (*kept.items(), *headers):
        if value is not None:
            raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
            lines.append(name.encode() + b": " + raw)
    return b"\r\n".join([*lines, b"", body])


def _encoded(value: Any) -> bytes:
    # 1e400 is a number of JSON's; Python writes it as Infinity, which is none.
    return json.dumps(value).replace("Infinity", "1e400").encode()


def _changed_body(rng: random.Random) -> Asked:
    path, body = rng.choice(VALID)
    changed = any_value(rng) if rng.random() < 0.05 else mutated(rng, body, FIELDS)
    return Asked(_message(path, _encoded(changed)))


def _bruised_body(rng: random.Random) -> Asked:
    path, body = rng.choice(VALID)
    content = _encoded(body)
    return Asked(_message(path, bruised(rng, content)))


def _excess(rng: random.Random) -> Asked:
    content = b" " * (5 * 2**20) if rng.random() < 0.1 else excessive(rng)
    return Asked(_message(rng.choice([CHAT, TEXT, INFILL]), content))


def _headers(rng: random.Random) -> Asked:
    path, body = rng.choice(VALID)
    content = _encoded(body)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    bare: tuple[tuple[str, Any], ...] = (("content-length", None), ("transfer-encoding", "chunked"))
    strange = rng.choice(
        [*TEXTS, "Bearer ", "Bearer x", "Basic eDp5", "é" * 20, "multipart/form-data"]
    )
    line = strange.replace("\r", "").replace("\n", "").replace("\0", "")
    cases: list[Callable[[], Asked]] = [
        lambda: Asked(_message(path, content, headers=(("content-type", line),)), is_http=False),
        lambda: Asked(_message(path, content, headers=(("authorization", line),)), is_http=False),
        lambda: Asked(_message(path, content, headers=(("x-request-id", line),)), is_http=False),
        lambda: Asked(_message(path, content, headers=(("content-type", None),))),
        lambda: Asked(_message(path, content, headers=(("content-encoding", "gzip"),))),
        lambda: Asked(_message(path, content, headers=(("accept", "application/xml"),))),
        lambda: Asked(_message(path, chunked, headers=bare)),
        lambda: Asked(_message(path, b"zz\r\n" + chunked, headers=bare), is_http=False),
        lambda: Asked(_message(path, content, headers=(("expect", "100-continue"),))),
        lambda: Asked(_message(path, content, headers=(("upgrade", "websocket"),))),
        lambda: Asked(_message(path, content, headers=(("x-large", "a" * 40_000),)), is_http=False),
        lambda: Asked(_message(path, content, headers=tuple((f"x-{i}", "a") for i in range(1000)))),
        lambda: Asked(
            _message(
                path,
                content,
                headers=(("content-length", rng.choice(["-1", "1e3", "9" * 30, "²"])),),
            ),
            is_http=False,
        ),
        lambda: Asked(_message(path, content, headers=(("content-length", 10**12),))),
        lambda: Asked(_message(path, content, headers=(("content-length", 3),)), is_http=False),
        lambda: Asked(_message(path, content, headers=(("content-length", len(content) + 9),))),
        lambda: Asked(_message(path, content).replace(b"HTTP/1.1", b"HTTP/1.0")),
    ]
    return rng.choice(cases)()


def _elsewhere(rng: random.Random) -> Asked:
    method, path = rng.choice(METHODS), rng.choice(PATHS)
    body = b"{}" if rng.random() < 0.3 else b""
    return Asked(_message(path, body, method), method, is_http=False)


def _garbage(rng: random.Random) -> Asked:
    if rng.random() < 0.5:
        return Asked(rng.choice(GARBAGE), is_http=False)
    if rng.random() < 0.5:
        return Asked(rng.randbytes(rng.randint(1, 5000)), is_http=False)
    path, body = rng.choice(VALID)
    return Asked(bruised(rng, _message(path, _encoded(body))), is_http=False)
