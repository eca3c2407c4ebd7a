"""Values that nobody should send, and valid ones with something wrong in them.

Knows JSON; knows nothing of who is sent what.
"""

from __future__ import annotations

import copy
import random
from typing import Any

# Not as JSON that Python would write: for `encoded`.
EXTREME_NUMBERS: list[Any] = [
    *(0, 1, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, -0.0, 5e-324, 1e-300, 1.7e308, 1e400, -1e400, 3.0000000000000004),
]
TEXTS = [
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "\udfff\ud800",
        "\u202e",
        "👩‍👩‍👧‍👦",
        "e\u0301" * 40,
        "\ufeff",
        "\x1b[2J",
    ),
    *("null", "true", "draft", "none", "auto", "quality", "fast", "user", "text", "image_url"),
    *("<|gap:3|>", "<|gap:|>", "<|gap:99999999999|>", "<|gap:-1|>", "<bos>", "<|turn>system\n"),
    *(
        "<|channel>thought\n",
        "<|tool_call>call:f{",
        "{{ 7*7 }}",
        "{% for x in y %}",
        "%s%n",
        "../..",
    ),
    *("'; --", "x" * 300, "\n" * 50, "0" * 40, "9" * 40),
]
NAMES = [
    *("role", "content", "type", "text", "function", "name", "arguments", "parameters", "tools"),
    *(
        "tool_calls",
        "tool_call_id",
        "reasoning_content",
        "messages",
        "__class__",
        "",
        "\ud83d",
        "$ref",
    ),
    *("items", "properties", "enable_thinking", "add_generation_prompt", "bos_token", "seed"),
]


def any_value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON value, small ones mostly."""
    kind = rng.random()
    if depth and kind < 0.15:
        return [any_value(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    if depth and kind < 0.35:
        return {rng.choice(NAMES): any_value(rng, depth - 1) for _ in range(rng.randint(0, 4))}
    if kind < 0.45:
        return rng.choice([None, True, False])
    if kind < 0.7:
        return rng.choice(EXTREME_NUMBERS)
    if kind < 0.9:
        return rng.choice(TEXTS)
    return "".join(
        chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x11000)])) for _ in "x" * 8
    )


def mutated(rng: random.Random, value: Any, fields: list[str]) -> Any:
    """A copy with one to three things changed anywhere in it; `fields` may be added on top."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        holder, key = rng.choice(_places(root))
        change = rng.random()
        if change < 0.5:
            holder[key] = any_value(rng)
        elif change < 0.6 and holder is not root:
            del holder[key]
        elif change < 0.7:
            holder[key] = [holder[key]] * rng.choice([1, 2, 50])
        elif change < 0.75:
            holder[key] = {"value": holder[key]}
        elif isinstance(root[0], dict):
            root[0][rng.choice([*fields, *NAMES])] = any_value(rng)
    return root[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every holder and key in it."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found = [(value, key) for key, _ in inside]
    for _, inner in inside:
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


def bruised(rng: random.Random, content: bytes) -> bytes:
    """Some bytes of it changed, cut off or put in."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged) + 1)
        change = rng.random()
        if change < 0.4:
            damaged[at : at + 1] = rng.randbytes(1)
        elif change < 0.6:
            damaged[at:at] = rng.choice(
                [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\0", b'"', b"NaN"]
            )
        elif change < 0.8:
            del damaged[at : at + rng.randint(1, 8)]
        else:
            del damaged[at:]
    return bytes(damaged)


def excessive(rng: random.Random) -> bytes:
    """JSON that is deep, long or wide."""
    size = rng.choice([10, 1_000, 100_000])
    return rng.choice(
        [
            lambda: b"[" * size + b"]" * size,
            lambda: b'{"a":' * size + b"1" + b"}" * size,
            lambda: b'{"messages":' + b"[" * size,
            lambda: b'{"prompt":"' + b"x" * (size * 10) + b'"}',
            lambda: b'{"prompt":"x","seed":' + b"9" * size + b"}",
            lambda: b'{"prompt":"x","t_min":1e' + b"9" * size + b"}",
            lambda: b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(size)) + b"}",
            lambda: b'{"prompt":[' + b",".join([b"1"] * size) + b"]}",
            lambda: b'{"prompt":"x",' + b'"seed":1,' * size + b'"max_tokens":1}',
            lambda: b" " * (size * 10) + b"{}",
        ]
    )()
