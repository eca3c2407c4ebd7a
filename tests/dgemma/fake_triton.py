"""A gRPC server that speaks KServe v2 and plays scripted responses, in place of Triton.

It is a real server on a loopback port: what a test sees passed through gRPC in both directions.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 30,
    "committed_tokens": 64,
    "denoising_steps": [4, 3],
    "cap_hits": 0,
    "mean_entropy": [0.001, 0.002],
    "passes": 9,
    "seed": 1234,
    "queue_ms": 0.1,
    "first_block_ms": 80.0,
    "total_ms": 150.0,
}

Script = Callable[["FakeTriton", dict[str, Any], grpc.ServicerContext], Iterator[Any]]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Plays `script` for every request and records what arrived and how it ended."""

    def __init__(
        self, script: Script, tls: tuple[bytes, bytes] | None = None, port: int = 0
    ) -> None:
        """`tls` = key and certificate of `localhost`. Port 0 takes a free one."""
        self.script = script
        self.requests: list[Any] = []  # ModelInferRequest
        self.metadata: list[dict[str, str]] = []
        self.peers: set[str] = set()  # one per connection
        self.cancelled = threading.Event()  # a request ended before its script
        self.completed = threading.Event()  # a script ran to its end
        self._server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        if tls is None:
            self.url = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        else:
            credentials = grpc.ssl_server_credentials([tls])
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
            self.url = f"localhost:{port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancelled.set()  # releases scripts that wait for it
        self.stop()

    def stop(self) -> None:
        """End every request at once, and listen no more."""
        self._server.stop(grace=None).wait()

    def ModelStreamInfer(
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        request = next(requests)
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        played = threading.Event()
        context.add_callback(lambda: None if played.is_set() else self.cancelled.set())
        yield from self.script(self, inputs(request), context)
        played.set()
        self.completed.set()


def inputs(request: Any) -> dict[str, Any]:
    """The request's tensors: text, or a list of token ids."""
    tensors: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            (length,) = struct.unpack("<I", raw[:4])
            assert list(tensor.shape) == [1] and len(raw) == 4 + length
            tensors[tensor.name] = raw[4:].decode()
        else:
            assert tensor.datatype == "INT32"
            tensors[tensor.name] = list(struct.unpack(f"<{tensor.shape[0]}i", raw))
    return tensors


def response(
    kind: str,
    text: str = "",
    *,
    token_ids: tuple[int, ...] = (),
    states: tuple[int, ...] = (),
    block_index: int = 0,
    denoising_step: int = 0,
    finish_reason: str = "",
    usage: dict[str, Any] | None = None,
) -> Any:
    """One response that keeps to the service's contract."""
    message = service_pb2.ModelInferResponse(model_name="diffusion_gemma")

    def add(name: str, datatype: str, length: int, raw: bytes) -> None:
        message.outputs.add(name=name, datatype=datatype, shape=[length])
        message.raw_output_contents.append(raw)

    def add_bytes(name: str, value: str) -> None:
        data = value.encode()
        add(name, "BYTES", 1, struct.pack("<I", len(data)) + data)

    add_bytes("text_output", text)
    add("token_ids", "INT32", len(token_ids), struct.pack(f"<{len(token_ids)}i", *token_ids))
    add_bytes("kind", kind)
    add_bytes("finish_reason", finish_reason)
    add("block_index", "INT32", 1, struct.pack("<i", block_index))
    add("denoising_step", "INT32", 1, struct.pack("<i", denoising_step))
    add_bytes("usage", "" if usage is None else json.dumps(usage))
    add("text_states", "UINT8", len(states), bytes(states))
    message.parameters["triton_final_response"].bool_param = kind == "final"
    return service_pb2.ModelStreamInferResponse(infer_response=message)


def final(text: str = "", finish_reason: str = "stop", **content: Any) -> Any:
    """The last response of an answer."""
    return response("final", text, finish_reason=finish_reason, usage=USAGE, **content)


def end_marker() -> Any:
    """What Triton sends when the final flag comes after the last response."""
    message = service_pb2.ModelInferResponse(model_name="diffusion_gemma")
    message.parameters["triton_final_response"].bool_param = True
    return service_pb2.ModelStreamInferResponse(infer_response=message)


def refusal(text: str) -> Any:
    """How Triton refuses a request before the model sees it."""
    return service_pb2.ModelStreamInferResponse(error_message=text)


def answer(fake: FakeTriton, tensors: dict[str, Any], _: grpc.ServicerContext) -> Iterator[Any]:
    """Two blocks, `Hello,` and ` world`, in the mode that was asked for."""
    mode = tensors.get("stream", "block")
    if mode == "none":
        yield final("Hello, world", token_ids=(1, 2, 3, 4))
        return
    for block, (draft, states, text, ids) in enumerate(
        [
            ("He\nxo,", (1, 1, 0, 0, 0, 2), "Hello,", (1, 2)),
            (" wörld", (0, 0, 1, 1, 1, 1), " world", (3, 4)),
        ]
    ):
        if mode == "draft":
            yield response("draft", draft, states=states, block_index=block, denoising_step=1)
            accepted = (1,) * len(text)
            yield response("draft", text, states=accepted, block_index=block, denoising_step=2)
        yield response("block", text, token_ids=ids, block_index=block, denoising_step=2)
    yield final()


def one_block_then_wait(
    fake: FakeTriton, tensors: dict[str, Any], context: grpc.ServicerContext
) -> Iterator[Any]:
    """A block, then nothing until the client leaves."""
    yield response("block", "Hello")
    fake.cancelled.wait(30)
    context.abort(grpc.StatusCode.CANCELLED, "the client has left")


def failure(code: grpc.StatusCode, details: str, *, after: tuple[Any, ...] = ()) -> Script:
    """An error of the service: a text that begins with its status."""

    def script(
        fake: FakeTriton, tensors: dict[str, Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        yield from after
        yield refusal(f"[{code.name}] {details}")

    return script
