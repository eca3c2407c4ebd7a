"""The service's gRPC contract: KServe v2 tensors on Triton's ModelStreamInfer, over grpc.aio.

Knows tensors, their layout and how errors are written; knows nothing of when a request is sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dgemma_loadtest.clock import Clock
from dgemma_loadtest.errors import InputError, TargetError
from dgemma_loadtest.jobs import Job
from dgemma_loadtest.records import Usage
from dgemma_loadtest.run_file import Server
from dgemma_loadtest.targets.base import CONNECT_TIMEOUT_S, Answer, Connection, End, Piece

MODEL = "diffusion_gemma"
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else all channels of a process share a connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # a retry would be measured as one slow request
)
_STATUS = re.compile(r"\[([A-Z_]+)\] (.*)", re.DOTALL)
_RETRY_AFTER = re.compile(r"; retry after ([0-9.]+) s$")


@dataclass(frozen=True)
class Reply:
    """A response, as far as it is measured."""

    kind: str  # draft, block or final
    characters: int
    block: int
    steps: int
    finish_reason: str | None
    usage: Usage | None


class TritonTarget:
    """`address` is HOST:PORT; `tls` speaks TLS, trusting `ca` or what the system trusts."""

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        keys: Mapping[str, str] | None = None,
        model: str = MODEL,
        tls: bool = False,
        ca: Path | None = None,
    ) -> None:
        self.url = f"grpc{'s' * tls}://{address}"
        self._address, self._clock, self._model = address, clock, model
        self._keys = dict(keys or {})
        self._credentials = grpc.ssl_channel_credentials(_pem(ca)) if tls else None
        self._open: list[TritonConnection] = []

    async def connect(self, count: int) -> list[Connection]:
        made = [TritonConnection(self._channel(), self._model, self._clock, self._keys)
                for _ in range(count)]  # fmt: skip
        self._open += made
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.gather(*(connection.ready() for connection in made))
        except TimeoutError:
            raise TargetError(
                "UNAVAILABLE", f"no server answers at {self.url} within {CONNECT_TIMEOUT_S:g} s"
            ) from None
        return list(made)

    async def describe(self) -> Server:
        async with self._channel() as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                said = await stub.ServerMetadata(
                    service_pb2.ServerMetadataRequest(), timeout=CONNECT_TIMEOUT_S
                )
                return Server("triton", said.name or None, said.version or None, self._model)
            except grpc.aio.AioRpcError as error:
                return Server("triton", model=self._model, more={"error": error.details()})

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()
        self._open.clear()

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=OPTIONS)
        return grpc.aio.secure_channel(self._address, self._credentials, options=OPTIONS)


class TritonConnection:
    """One channel with a connection of its own."""

    def __init__(
        self, channel: grpc.aio.Channel, model: str, clock: Clock, keys: Mapping[str, str]
    ) -> None:
        self._channel, self._model, self._clock, self._keys = channel, model, clock, keys
        # Bytes, so that their time is taken before they are parsed.
        self._stream = channel.unary_stream(METHOD)

    async def ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self) -> None:
        await self._channel.close()

    async def ask(self, job: Job) -> Answer:
        call = self._stream(
            encode(job, self._model),
            timeout=job.timeout_s,
            metadata=authorization(self._keys.get(job.tenant)),
        )
        try:
            while (content := await call.read()) is not grpc.aio.EOF:
                at_s = self._clock.now()
                reply = decode(content)
                if reply is None or reply.kind == "draft":
                    continue
                if reply.kind != "final" or reply.characters:
                    yield Piece(at_s, reply.characters, "block", reply.block, reply.steps)
                if reply.kind == "final":
                    await _drained(call)
                    yield End(at_s, reply.finish_reason, reply.usage)
                    return
            raise TargetError("INTERNAL", "the stream ended without a final response")
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from None
            raise TargetError(error.code().name, error.details() or "") from None
        finally:
            call.cancel()  # has no effect on a stream that has ended


def authorization(key: str | None) -> tuple[tuple[str, str], ...] | None:
    return None if key is None else (("authorization", f"Bearer {key}"),)


def encode(job: Job, model: str = MODEL) -> bytes:
    """A ModelInferRequest: a chat of one message, or with a template."""
    request = service_pb2.ModelInferRequest(model_name=model)
    # Without it, the end of an answer whose last response came earlier could not be seen.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    _add(request, "messages", json.dumps([{"role": "user", "content": job.prompt.text}]))
    if job.task == "infill" and job.prompt.template is not None:
        _add(request, "canvas_template", job.prompt.template)
    sampling = {"seed": job.seed, **job.sampling}
    if job.max_new_tokens is not None and job.task != "infill":
        sampling["max_new_tokens"] = job.max_new_tokens
    _add(request, "sampling_parameters", json.dumps(sampling))
    _add(request, "stream", "block")
    content: bytes = request.SerializeToString()
    return content


def decode(content: bytes) -> Reply | None:
    """None for Triton's mark that a request has ended. Raises TargetError for a refusal, or where
    the response does not keep to the contract.
    """
    message = service_pb2.ModelStreamInferResponse.FromString(content)
    if message.error_message:
        raise refusal(message.error_message)
    response = message.infer_response
    if not response.outputs:
        return None
    try:
        raw = {
            output.name: data
            for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        usage = _text(raw["usage"])
        return Reply(
            kind=_text(raw["kind"]),
            characters=len(_text(raw["text_output"])),
            block=_int32(raw["block_index"]),
            steps=_int32(raw["denoising_step"]),
            finish_reason=_text(raw["finish_reason"]) or None,
            usage=usage_of(json.loads(usage)) if usage else None,
        )
    except (LookupError, ValueError, struct.error) as error:
        raise TargetError(
            "INTERNAL", f"the response does not keep to the contract ({type(error).__name__})"
        ) from error


def refusal(said: str) -> TargetError:
    """`[CODE] details; retry after 2 s`, as streams carry errors."""
    match = _STATUS.fullmatch(said)
    code, details = match.groups() if match else ("UNKNOWN", said)
    after = _RETRY_AFTER.search(details)
    return TargetError(code, details, None if after is None else float(after[1]))


def usage_of(said: Mapping[str, Any]) -> Usage:
    """The service's usage, over gRPC or under `dgemma` over HTTP; times become seconds."""

    def seconds(name: str) -> float | None:
        value = said.get(name)
        return None if value is None else float(value) / 1e3

    simulated = said.get("simulated")
    return Usage(
        prompt_tokens=said.get("prompt_tokens"),
        useful_tokens=said.get("completion_tokens"),
        committed_tokens=said.get("committed_tokens"),
        steps=tuple(said.get("denoising_steps") or ()),
        cap_hits=said.get("cap_hits"),
        passes=said.get("passes"),
        prefill_chunks=said.get("prefill_chunks"),
        cached_tokens=said.get("cached_tokens"),
        service_units=said.get("service_units"),
        queue_s=seconds("queue_ms"),
        first_block_s=seconds("first_block_ms"),
        total_s=seconds("total_ms"),
        simulated=None if simulated in (None, False) else str(simulated),
    )


async def _drained(call: Any) -> None:
    """Lets Triton end a finished stream by itself, as it asks its clients to."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass


def _add(request: Any, name: str, text: str) -> None:
    data = text.encode()
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)


def _text(content: bytes) -> str:
    return content[4:].decode()  # the first four bytes are the length


def _int32(content: bytes) -> int:
    return int.from_bytes(content[:4], "little", signed=True)


def _pem(ca: Path | None) -> bytes | None:
    if ca is None:
        return None
    try:
        return ca.read_bytes()
    except OSError as error:
        raise InputError(f"tls-ca: cannot read {ca}: {error.strerror}") from None
