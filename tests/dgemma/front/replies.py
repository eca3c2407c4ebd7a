"""What the front answered, taken apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx2

from tests.dgemma.fake_triton import FakeTriton, Script, final, response

USER = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error in OpenAI's shape."""
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a complete stream."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def saying(*texts: str, finish_reason: str = "stop") -> Script:
    """One block for each text."""

    def script(
        fake: FakeTriton, tensors: dict[str, Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        for index, text in enumerate(texts):
            yield response("block", text, block_index=index, denoising_step=1)
        yield final(finish_reason=finish_reason)

    return script


def one_after_another(*scripts: Script) -> Script:
    """The n-th request is answered by the n-th script."""
    left = list(scripts)

    def script(
        fake: FakeTriton, tensors: dict[str, Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        yield from left.pop(0)(fake, tensors, context)

    return script
