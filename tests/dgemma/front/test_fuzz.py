"""Whatever a client sends: an answer, or a refusal that says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgemma.front.bodies import ChatBody, CompletionBody, InfillBody
from dgemma.front.fields import IGNORED, UNSUPPORTED
from tests.dgemma.front.replies import CHAT, COMPLETIONS, INFILL, USER, error_of

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["draft", "auto", "none", "\ud800", 2**70]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "function", "name", "arguments"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
NAMES = sorted(
    {*ChatBody.model_fields, *InfillBody.model_fields, *CompletionBody.model_fields}
    | {*UNSUPPORTED, *IGNORED}
)
VALID: dict[str, Any] = {
    CHAT: {"messages": USER},
    COMPLETIONS: {"prompt": "p"},
    INFILL: {"prompt": "p", "canvas_template": "a"},
}


@pytest.mark.parametrize("path", VALID)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), VALUES, max_size=3))
def test_any_json_is_answered_or_refused(
    http: httpx2.Client, path: str, fields: dict[str, Any]
) -> None:
    answered = http.post(path, content=json.dumps({**VALID[path], **fields}))
    if answered.status_code != 200:
        assert answered.status_code in (400, 404)
        assert error_of(answered)["message"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=30), headers=st.dictionaries(
    st.sampled_from(["authorization", "x-request-id", "content-type", "accept"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    max_size=3,
))  # fmt: skip
def test_any_bytes_are_refused(http: httpx2.Client, body: bytes, headers: dict[str, str]) -> None:
    answered = http.post(COMPLETIONS, content=body, headers=headers)
    assert answered.status_code == 400
    assert error_of(answered)["message"]
