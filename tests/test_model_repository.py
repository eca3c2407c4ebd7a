from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dgemma.kserve import MODEL_NAME, decode_response, encode_request
from dgemma.request import RawRequest
from tests.dgemma.fake_triton import final

PREFIX = "TYPE_"


@pytest.fixture(scope="module")
def model(model_repository: Path) -> Path:
    return model_repository / MODEL_NAME


@pytest.fixture(scope="module")
def config(model: Path) -> Any:
    parsed = model_config_pb2.ModelConfig()
    text_format.Parse((model / "config.pbtxt").read_text(), parsed)
    return parsed


def declared(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    """Data type, as messages spell it, and dimensions of each tensor of the configuration."""
    kinds = {
        tensor.name: model_config_pb2.DataType.Name(tensor.data_type).removeprefix(PREFIX)
        for tensor in tensors
    }
    return {
        tensor.name: (kinds[tensor.name].replace("STRING", "BYTES"), list(tensor.dims))
        for tensor in tensors
    }


def fits(shape: list[int], dims: list[int]) -> bool:
    return len(shape) == len(dims) and all(d in (-1, s) for s, d in zip(shape, dims, strict=True))


def test_the_model_is_decoupled_unbatched_and_alone(config: Any) -> None:
    assert (config.name, config.backend) == (MODEL_NAME, "python")
    assert config.max_batch_size == 0
    assert config.model_transaction_policy.decoupled is True
    # The scheduler inside owns the queue: Triton's would do nothing.
    assert config.WhichOneof("scheduling_choice") is None
    [instances] = config.instance_group
    assert instances.count == 1


def test_every_input_is_one_that_the_service_reads_and_optional(config: Any) -> None:
    assert {tensor.name for tensor in config.input} == set(RawRequest.__dataclass_fields__)
    assert all(tensor.optional for tensor in config.input)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("x", {}),
        (None, {"messages": []}),
        (None, {"input_ids": [1, 2, 3]}),
        ("x", {"canvas_template": "y", "seed": 1}),
    ],
)
def test_what_the_client_sends_is_what_the_configuration_declares(
    config: Any, prompt: str | None, options: dict[str, Any]
) -> None:
    inputs = declared(config.input)
    for sent in encode_request(prompt, "block", options).inputs:
        datatype, dims = inputs[sent.name]
        assert sent.datatype == datatype
        assert fits(list(sent.shape), dims)


def test_the_client_can_send_every_input(config: Any) -> None:
    options = {"canvas_template": "y", "seed": 1}
    prompts = [("x", {}), (None, {"messages": []}), (None, {"input_ids": [1]})]
    sent = {
        tensor.name
        for prompt, more in prompts
        for tensor in encode_request(prompt, "block", {**options, **more}).inputs
    }
    assert sent == {tensor.name for tensor in config.input}


def test_the_client_needs_exactly_the_outputs_that_the_configuration_declares(
    config: Any,
) -> None:
    response = final("text", token_ids=(1, 2)).infer_response
    assert decode_response(response) is not None
    outputs = declared(config.output)
    assert [tensor.name for tensor in response.outputs] == list(outputs)
    for tensor in response.outputs:
        datatype, dims = outputs[tensor.name]
        assert tensor.datatype == datatype
        assert fits(list(tensor.shape), dims)


def test_model_py_is_short_and_hands_everything_on(model: Path) -> None:
    source = (model / "1" / "model.py").read_text()
    assert len(source.splitlines()) < 60
    [model_class] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert model_class.name == "TritonPythonModel"
    methods = {node.name: node for node in model_class.body if isinstance(node, ast.FunctionDef)}
    assert set(methods) == {"initialize", "execute", "finalize"}
    assert all(len(method.body) == 1 for method in methods.values())


def test_the_repository_holds_nothing_else_that_triton_would_load(model_repository: Path) -> None:
    assert [path.name for path in model_repository.iterdir()] == [MODEL_NAME]
    files = {path.relative_to(model_repository / MODEL_NAME) for path in tracked(model_repository)}
    assert files == {Path("config.pbtxt"), Path("1/model.py")}


def tracked(directory: Path) -> list[Path]:
    """The files below it that are not Python's cache."""
    return [p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
