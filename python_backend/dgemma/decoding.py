"""Bytes of a request as text and as JSON, and values as an error message shows them.

Knows UTF-8, JSON and how to point at what is wrong in them; knows nothing of what they mean.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from dgemma.errors import InvalidRequest

LONGEST_SHOWN = 80  # characters


def decode_text(field: str, raw: bytes) -> str:
    """UTF-8 as text; InvalidRequest gives the offset of the first bad byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            field,
            f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8; "
            "encode the text as UTF-8",
        ) from None


def decode_json(field: str, raw: bytes) -> Any:
    """The value of a JSON document; InvalidRequest gives the position of the first mistake."""
    text = decode_text(field, raw)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            field,
            f"not JSON: {error.msg} at line {error.lineno}, column {error.colno} "
            f"(character {error.pos}); send one JSON document",
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"not JSON that can be read: {error}") from None


def shown(value: object) -> str:
    """A JSON value for an error message: one short line of ASCII."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
