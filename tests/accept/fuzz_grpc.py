"""gRPC requests that nobody should send, each made of a seed and a number.

Knows KServe's messages, as bytes where they have to be wrong; knows nothing of calls.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from tritonclient.grpc import service_pb2

from dgemma.kserve import MODEL_NAME
from tests.accept.fuzz_http import HISTORY, USER
from tests.accept.fuzz_values import TEXTS, bruised, excessive, mutated
from tests.accept.grpc_exchange import UNARY, Asked

SAMPLING: dict[str, Any] = {
    "max_new_tokens": 8,
    "max_denoising_steps": 2,
    "seed": 1,
    "stop": ["z"],
    "t_min": 0.4,
    "t_max": 0.8,
    "entropy_bound": 0.1,
    "confidence_threshold": 0.1,
    "stability_threshold": 1,
    "ignore_eos": False,
    "return_token_ids": True,
    "priority": 0,
    "deadline_s": 20.0,
}
NAMES = ["text_input", "messages", "input_ids", "canvas_template", "sampling_parameters", "stream"]
TYPES = [
    *("BYTES", "INT32", "INT64", "UINT8", "FP32", "FP16", "BF16", "BOOL", "UINT64", "FP64"),
    *("", "bytes", "TYPE_STRING", "INVALID", "\0"),
]
SHAPES: list[list[int]] = [
    *([], [0], [1], [2], [-1], [1, 1], [1, 0], [3], [100], [2**31], [2**62, 4], [2**63 - 1]),
    *([-(2**63)], [1] * 200, [65536, 65536, 65536, 65536]),
]
PARAMETERS = [
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "authorization"),
    *("binary_data_size", "binary_data", "classification", "shared_memory_region"),
    *("shared_memory_byte_size", "shared_memory_offset", "triton_enable_empty_final_response", "x"),
]


def request(seed: int, number: int) -> Asked:
    """The same for the same two numbers."""
    rng = random.Random(f"grpc {seed} {number}")
    makers: list[tuple[Callable[[random.Random], Asked], float]] = [
        (_values, 50),
        (_tensors, 25),
        (_around, 12),
        (_bruised, 7),
        (_unary, 6),
    ]
    [make] = rng.choices([make for make, _ in makers], [weight for _, weight in makers])
    return make(rng)


def plain() -> Asked:
    """One in which nothing is wrong."""
    return Asked(_valid().SerializeToString())


def large() -> list[Asked]:
    """Refused ones of the sizes that occur, a megabyte at most."""
    sampling = (_json({"seed": "x" * size}) for size in (10_000, 100_000, 1_000_000))
    messages = [_message({"text_input": b"x", "sampling_parameters": text}) for text in sampling]
    messages += [_message({"text_input": b"x" * size}) for size in (10_000, 100_000, 1_000_000)]
    return [Asked(message.SerializeToString()) for message in messages]


def _values(rng: random.Random) -> Asked:
    """Tensors as they should be, and what they hold as it should not."""
    changed = rng.choice(NAMES)
    texts: dict[str, bytes] = {"sampling_parameters": _json(SAMPLING)}
    ids: bytes | None = None
    kind = rng.random()
    if kind < 0.4:
        texts["text_input"] = b"count from 42"
    elif kind < 0.8:
        texts["messages"] = _json(rng.choice([USER, {"messages": HISTORY}]))
    else:
        ids = struct.pack("<3i", 2, 65, 66)
    if changed == "input_ids":
        count = rng.choice([0, 1, 5, 2000])
        ids = struct.pack(
            f"<{count}i", *(rng.choice([0, 2, 65, 319, 320, -1, 2**31 - 1]) for _ in range(count))
        )
    elif changed in ("messages", "sampling_parameters"):
        value: Any = (
            SAMPLING if changed == "sampling_parameters" else {"messages": HISTORY, "tools": []}
        )
        odd = rng.random()
        if odd < 0.7:
            texts[changed] = _json(mutated(rng, value, list(SAMPLING)))
        elif odd < 0.85:
            texts[changed] = bruised(rng, _json(value))
        else:
            texts[changed] = excessive(rng)
    else:
        text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        texts[changed] = bruised(rng, text + b"x") if rng.random() < 0.5 else text
    message = _message(texts)
    if ids is not None:
        message.inputs.add(name="input_ids", datatype="INT32", shape=[len(ids) // 4])
        message.raw_input_contents.append(ids)
    return Asked(message.SerializeToString())


def _tensors(rng: random.Random) -> Asked:
    """Inputs that are missing, twice there, unknown, or of another type, shape or size."""
    message = _valid()
    for _ in range(rng.choice([1, 1, 2, 3])):
        _spoil(rng, message)
    return Asked(message.SerializeToString())


def _spoil(rng: random.Random, message: Any) -> None:
    index = rng.randrange(len(message.inputs)) if message.inputs else None
    change = rng.randrange(9)
    if change == 0 or index is None:
        message.inputs.add(
            name=rng.choice([*NAMES, "top_k", "", "\0"]), datatype="BYTES", shape=[1]
        )
        message.raw_input_contents.append(_text(b"x"))
    elif change == 1:
        message.inputs.add().CopyFrom(message.inputs[index])
        message.raw_input_contents.append(b"" if rng.random() < 0.5 else _text(b"y"))
    elif change == 2:
        del message.inputs[index]
    elif change == 3:
        message.inputs[index].datatype = rng.choice(TYPES)
    elif change == 4:
        message.inputs[index].shape[:] = rng.choice(SHAPES)
    elif change == 5 and message.raw_input_contents:
        at = rng.randrange(len(message.raw_input_contents))
        sizes = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
        short = struct.pack("<I", rng.choice(sizes)) + b"ab"
        message.raw_input_contents[at] = rng.choice(
            [b"", b"\0", short, _text(b"x") * 3, b"x" * 4096]
        )
    elif change == 6:
        del message.raw_input_contents[:]
    elif change == 7:
        contents = message.inputs[index].contents
        contents.bytes_contents.append(b"x")
        if rng.random() < 0.5:
            contents.int_contents.extend([1, 2, 3])
    else:
        name = rng.choice(PARAMETERS)
        _parameter(rng, message.inputs[index].parameters[name])


def _around(rng: random.Random) -> Asked:
    """A good prompt in a message that asks for what there is not."""
    message = _valid()
    metadata: tuple[tuple[str, str], ...] = ()
    change = rng.randrange(7)
    if change == 0:
        message.model_name = rng.choice(["", "other", "diffusion_gemma ", "../x", "\0", "x" * 5000])
    elif change == 1:
        message.model_version = rng.choice(["2", "-1", "x", "1.0", "99999999999999999999", ""])
    elif change == 2:
        message.id = rng.choice(["", "\0", "x" * 100_000, "%s%n", "{}", "\u202e", "same", "same"])
    elif change == 3:
        for _ in range(rng.randint(1, 3)):
            output = message.outputs.add(
                name=rng.choice(["text_output", "kind", "none", "", "usage"])
            )
            if rng.random() < 0.3:
                _parameter(rng, output.parameters[rng.choice(PARAMETERS)])
    elif change == 4:
        for _ in range(rng.randint(1, 3)):
            _parameter(rng, message.parameters[rng.choice(PARAMETERS)])
    elif change == 5:
        length = rng.choice([4_000, 8_000, 12_000, 20_000, 200_000])
        value = rng.choice(["", "x", "Bearer x", "Basic x", "Bearer " + "a" * length, "Bearer {}"])
        metadata = ((rng.choice(["authorization", "x-other"]), value),)
    else:
        del message.inputs[:]
        del message.raw_input_contents[:]
    return Asked(message.SerializeToString(), metadata=metadata)


def _bruised(rng: random.Random) -> Asked:
    """Bytes that are no message, or another one."""
    content = _valid().SerializeToString()
    content = rng.randbytes(200) if rng.random() < 0.2 else bruised(rng, content)
    return Asked(content, is_message=False)


def _unary(rng: random.Random) -> Asked:
    """The call that decoupled models do not answer, and those that only tell."""
    method = rng.choice(
        [UNARY, UNARY, "ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics"]
    )
    if method == UNARY:
        return Asked(_valid().SerializeToString(), method)
    kind = getattr(service_pb2, f"{method}Request")
    message = kind(
        name=rng.choice([MODEL_NAME, "other", "", "\0"]), version=rng.choice(["", "1", "x"])
    )
    return Asked(message.SerializeToString(), method)


def _parameter(rng: random.Random, parameter: Any) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        parameter.bool_param = rng.random() < 0.5
    elif kind == 1:
        parameter.int64_param = rng.choice([0, 1, -1, 2**63 - 1, -(2**63)])
    else:
        parameter.string_param = rng.choice(["", "x", "true", "\0", '"', "x" * 3000])


def _valid() -> Any:
    return _message({"text_input": b"count from 42", "sampling_parameters": _json(SAMPLING)})


def _message(texts: dict[str, bytes]) -> Any:
    message = service_pb2.ModelInferRequest(model_name=MODEL_NAME)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, content in texts.items():
        message.inputs.add(name=name, datatype="BYTES", shape=[1])
        message.raw_input_contents.append(_text(content))
    return message


def _text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _json(value: Any) -> bytes:
    return json.dumps(value).replace("Infinity", "1e400").encode()
