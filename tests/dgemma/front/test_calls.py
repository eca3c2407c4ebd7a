from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma.front.calls import Call, MalformedCall, parse_call

FUNCTIONS = frozenset({"f", "get_weather"})


def arguments(text: str) -> Any:
    return json.loads(parse_call(f"call:f{text}", FUNCTIONS).arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ('{location:<|"|>São Paulo, "SP"<|"|>}', {"location": 'São Paulo, "SP"'}),
        ("{days:3,far:-1.5e3,ok:true,no:false,none:null}",
         {"days": 3, "far": -1500.0, "ok": True, "no": False, "none": None}),
        ('{a:{b:[1,{c:<|"|>x<|"|>}],d:[]}}', {"a": {"b": [1, {"c": "x"}], "d": []}}),
        ('{ a : 1 , <|"|>b c<|"|> : [ 2 ] }', {"a": 1, "b c": [2]}),
        ('{"location": "Paris", "n": 1}', {"location": "Paris", "n": 1}),
        ('{location:"a \\"quoted\\" word"}', {"location": 'a "quoted" word'}),
        ('{text:<|"|>{not: [an object]}<|"|>}', {"text": "{not: [an object]}"}),
    ],
)  # fmt: skip
def test_the_model_s_notation_becomes_json(text: str, expected: dict[str, Any]) -> None:
    assert arguments(text) == expected


def notation(value: Any) -> str:
    """A JSON value as Gemma 4's chat template writes it."""
    match value:
        case str():
            return f'<|"|>{value}<|"|>'
        case list():
            return "[" + ",".join(map(notation, value)) + "]"
        case dict():
            return "{" + ",".join(f"{key}:{notation(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


KEYS = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_the_template_can_write_is_read_back(value: dict[str, Any]) -> None:
    assert arguments(notation(value)) == value


def test_a_call_has_a_name() -> None:
    call = parse_call('call:get_weather{city:<|"|>Rome<|"|>}', FUNCTIONS)
    assert call == Call("get_weather", '{"city": "Rome"}')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not of the form"),
        ("call:f", "not of the form"),
        ("f{}", "not of the form"),
        ("call:rm{}", 'no function "rm"'),
        ("call:f{a:1", "no ','"),
        ("call:f{a:}", "no value"),
        ("call:f{a 1}", "no ':'"),
        ("call:f{:1}", "no key"),
        ("call:f{a:1,}", "no key"),
        ("call:f{a:1 b:2}", "no ','"),
        ("call:f{a:1}x", "text behind"),
        ("call:f{a:1,a:2}", "twice"),
        ("call:f{a:word}", "neither a number nor a string"),
        ("call:f{a:01}", "neither a number nor a string"),
        ("call:f{a:NaN}", "neither a number nor a string"),
        ('call:f{a:<|"|>x}', "without end"),
        ('call:f{a:"x}', "Unterminated string"),
        ("call:f{a:1e999}", "cannot be written as JSON"),
        ('call:f{"a":"\\ud800"}', "cannot be written as JSON"),
        ("call:f{a:" + "9" * 5000 + "}", "limit"),
        ("call:f{a:" + "[" * 100_000, "too many levels"),
        ("call:f[1]", "not of the form"),
    ],
)
def test_what_is_no_call_is_said_to_be_none(text: str, why: str) -> None:
    with pytest.raises(MalformedCall, match=why):
        parse_call(text, FUNCTIONS)
