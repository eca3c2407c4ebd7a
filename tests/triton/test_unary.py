"""The first thing that a new user tries, and how it fails."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.triton.raw import MODEL, ask, inputs

# The README quotes this.
UNARY_ERROR = (
    "[StatusCode.UNIMPLEMENTED] ModelInfer RPC doesn't support models with decoupled transaction "
    "policy"
)


def test_a_unary_infer_cannot_work_and_fails_with_unimplemented(url: str) -> None:
    with (
        triton.InferenceServerClient(url) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer(MODEL, inputs(text_input="count from 03 to 09"), client_timeout=30)
    assert str(caught.value) == UNARY_ERROR
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_unary_infer_does_no_harm_to_the_requests_after_it(url: str) -> None:
    with triton.InferenceServerClient(url) as client:
        for _ in range(3):
            with pytest.raises(InferenceServerException):
                client.infer(MODEL, inputs(text_input="x"), client_timeout=30)
    assert ask(url, inputs(text_input="x", sampling={"max_new_tokens": 1}))[-1].kind == "final"
