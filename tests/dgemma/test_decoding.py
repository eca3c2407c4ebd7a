from __future__ import annotations

import pytest

from dgemma.decoding import decode_json, decode_text, shown
from dgemma.errors import InvalidRequest


def test_text_is_utf8() -> None:
    assert decode_text("f", "é€😀".encode()) == "é€😀"


def test_the_first_byte_that_is_not_utf8_is_named() -> None:
    with pytest.raises(InvalidRequest, match="f: byte 0xff at offset 2 is not UTF-8"):
        decode_text("f", b"ab\xffc\xfe")


def test_json_is_decoded() -> None:
    assert decode_json("f", b'{"a": [1, 2.5, null, "\\u00e9"]}') == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"line 1, column 1 \(character 0\)"),
        (b'{"a":\n 1,}', "line 2, column 4"),
        (b"{} {}", "Extra data at line 1, column 4"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b"1" * 5000, "4300 digits"),
        (b"[" * 200_000, "recursion"),
        (b'"\xff"', "offset 1 is not UTF-8"),
    ],
)
def test_what_is_not_json_is_refused_with_a_position(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode_json("f", raw)
    assert caught.value.field == "f"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (0.5, "0.5"),
        (None, "null"),
        ("é\n\ud800", r'"\u00e9\n\ud800"'),
        ({"a": 1}, "an object"),
        ([1], "an array"),
        ("x" * 100, '"' + "x" * 76 + "..."),
    ],
)
def test_values_are_shown_in_one_short_line(value: object, text: str) -> None:
    assert shown(value) == text
