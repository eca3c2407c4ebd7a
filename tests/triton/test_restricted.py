"""What a client of the served port must not be able to do to the server."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "diffusion_gemma"


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
        lambda client: client.get_log_settings(),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        lambda client: client.get_trace_settings(),
        lambda client: client.register_system_shared_memory("mine", "/any", 64),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_cuda_shared_memory(
            "mine", base64.b64encode(bytes(64)), 0, 64
        ),
        lambda client: client.unregister_system_shared_memory(),
    ],
)
def test_log_traces_and_shared_memory_are_out_of_reach(
    url: str, ask: Callable[[Any], object]
) -> None:
    client = triton.InferenceServerClient(url)
    with client, pytest.raises(InferenceServerException, match="restricted"):
        ask(client)


def test_models_can_be_neither_loaded_nor_unloaded(url: str) -> None:
    with triton.InferenceServerClient(url) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="not allowed"):
                change(MODEL)
        assert client.is_model_ready(MODEL)
