from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dgemma import client
from dgemma.client_errors import from_message
from dgemma.errors import (
    ConfigurationError,
    EngineFailure,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from dgemma.reply import Response
from dgemma.request import RawRequest
from dgemma.triton_model import TritonChannel, read_request
from tests.dgemma import fake_pb_utils as pb
from tests.dgemma.fake_pb_utils import InferenceRequest, Sender, failure_of, outputs, texts

# Responses and inputs


def test_a_response_has_the_names_types_and_shapes_of_the_configuration(
    model_repository: Path,
) -> None:
    sender = Sender()
    response = Response("draft", "né", (1, 2), "", 3, 4, "{}", (0, 2))
    TritonChannel(pb, sender).send(response, final=False)
    [(sent, _)] = sender.sent
    types = {"O": "TYPE_STRING", "i": "TYPE_INT32", "u": "TYPE_UINT8"}
    config = model_config_pb2.ModelConfig()
    text_format.Parse((model_repository / "diffusion_gemma" / "config.pbtxt").read_text(), config)
    declared = [
        (output.name, model_config_pb2.DataType.Name(output.data_type), list(output.dims))
        for output in config.output
    ]
    assert [tensor.name for tensor in sent.output_tensors] == [name for name, _, _ in declared]
    for tensor, (_, datatype, dims) in zip(sent.output_tensors, declared, strict=True):
        array = tensor.as_numpy()
        assert types[array.dtype.kind] == datatype
        assert array.ndim == 1
        assert dims in ([-1], [array.size])
    assert outputs(sent) == {
        "text_output": "né",
        "token_ids": [1, 2],
        "kind": "draft",
        "finish_reason": "",
        "block_index": [3],
        "denoising_step": [4],
        "usage": "{}",
        "text_states": [0, 2],
    }


def test_empty_outputs_keep_their_types() -> None:
    sender = Sender()
    TritonChannel(pb, sender).send(Response("final"), final=True)
    arrays = {tensor.name: tensor.as_numpy() for tensor in sender.sent[0][0].output_tensors}
    assert (arrays["token_ids"].dtype, arrays["token_ids"].shape) == (np.int32, (0,))
    assert (arrays["text_states"].dtype, arrays["text_states"].shape) == (np.uint8, (0,))
    assert arrays["text_output"].tolist() == [b""]


def test_inputs_are_read_by_name_and_what_was_not_sent_is_none() -> None:
    tensors = {
        "messages": texts("[]"),
        "input_ids": np.array([5, 6], dtype=np.int32),
        "canvas_template": texts(b"\xff"),
        "sampling_parameters": texts("{}"),
        "stream": texts("draft"),
    }
    assert read_request(pb, InferenceRequest(tensors)) == RawRequest(
        None, b"[]", [5, 6], b"\xff", b"{}", b"draft"
    )
    assert read_request(pb, InferenceRequest({})) == RawRequest()


@pytest.mark.parametrize("values", [(), ("a", "b")])
@pytest.mark.parametrize(
    "name", ["text_input", "messages", "canvas_template", "sampling_parameters", "stream"]
)
def test_a_text_input_with_more_or_less_than_one_element_is_refused(
    name: str, values: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: got {len(values)} elements; send exactly"):
        read_request(pb, InferenceRequest({name: texts(*values)}))


def test_empty_input_ids_are_not_the_same_as_none() -> None:
    request = InferenceRequest({"input_ids": np.array([], dtype=np.int32)})
    assert read_request(pb, request).input_ids == []


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("seed", "x"), pb.TritonError.INVALID_ARG),
        (ResourceExhausted("x", 1.0), pb.TritonError.UNAVAILABLE),
        (Unavailable("x"), pb.TritonError.UNAVAILABLE),
        (ConfigurationError("x"), pb.TritonError.INTERNAL),
        (EngineFailure("x"), pb.TritonError.INTERNAL),
        (ValueError("x"), pb.TritonError.INTERNAL),
    ],
)
def test_each_error_has_the_closest_code_that_triton_has(error: Exception, code: int) -> None:
    sender = Sender()
    TritonChannel(pb, sender).fail(error)
    assert failure_of(sender).code == code


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("seed", "x"), client.RequestRejected),
        (ResourceExhausted("x", 1.0), client.Overloaded),
        (Unavailable("x"), client.Unavailable),
        (EngineFailure("x"), client.ServerFailure),
        (ValueError("x"), client.ServerFailure),
    ],
)
def test_the_text_of_an_error_tells_the_client_which_one_it_is(
    error: Exception, kind: type[client.ClientError]
) -> None:
    sender = Sender()
    TritonChannel(pb, sender).fail(error)
    heard = from_message(str(failure_of(sender)), url="host:1", timeout_s=1.0)
    assert type(heard) is kind
    assert heard.message == str(error)
    assert heard.code == getattr(error, "grpc_code", "INTERNAL")
