"""A chat completion, streamed, has text and an end."""

from __future__ import annotations

import json
import os

from asking import ask, failed

body = {
    "model": os.environ["TEST_MODEL"],
    "messages": [{"role": "user", "content": "count from 42"}],
    "max_tokens": 64,
    "seed": 7,
    "stream": True,
}
answer = ask("/v1/chat/completions", body)
if answer.status != 200:
    failed(f"{answer.status}: {answer.read().decode(errors='replace')[:500]}")
said, reason, done = "", None, False
for raw in answer:
    line = raw.decode().strip()
    if line == "data: [DONE]":
        done = True
    elif line.startswith("data: "):
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            failed(f"{event['error']}")
        for choice in event["choices"]:
            said += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
if not (done and said and reason in ("stop", "length")):
    failed(f"the stream ended with {said!r}, finish_reason {reason}, [DONE] {done}")
print(f"{len(said)} characters, finish_reason {reason}: {said[:80]!r}")
