"""Clients who ask for every draft and read none of them, beside others who read.

Knows sockets that are left alone, and what the service may spend on them.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from dgemma.kserve import STREAM_INFER, encode_request
from tests.accept.chaos_faults import (
    SEED,
    Subject,
    afterwards,
    ending,
    in_flight,
    nobody_there,
    nothing_more,
)
from tests.accept.chaos_load import Load
from tests.accept.chaos_service import Readiness, Service, started, within
from tests.accept.main_job import Line

UNREAD_S = 3.0  # DGEMMA_HTTP_WRITE_TIMEOUT_S
WATCHED_S = 12.0
GROWTH_MIB = 64
_MIB = 1 << 20
ENDLESS: dict[str, Any] = {
    "max_denoising_steps": 1024,
    "confidence_threshold": 0.0,
    "ignore_eos": True,
    "seed": 1,
}


def unread(engine: Path, checkpoint: Path, clients: int) -> Iterator[Line]:
    """Lines about as many clients of each protocol."""
    environment = {"DGEMMA_HTTP_WRITE_TIMEOUT_S": f"{UNREAD_S:g}"}
    with (
        tempfile.TemporaryDirectory() as scratch,
        started(engine, checkpoint, Path(scratch, "log"), environment) as service,
    ):
        subject = Subject.of(service)
        with ExitStack() as held, Load(service, subject.requests, SEED) as load:
            within(60, lambda: load.answered_over_both(0.0, 4))
            memory = _memory(service)
            struck = time.monotonic()
            sockets = [held.enter_context(_over_http(service)) for _ in range(clients)]
            for _ in range(clients):
                held.enter_context(_over_grpc(service))
            with Readiness(service) as readiness:
                until = struck + WATCHED_S
                most = memory
                while time.monotonic() < until:
                    time.sleep(0.2)
                    most = {role: max(size, most[role]) for role, size in _memory(service).items()}
            right = within(60, lambda: load.answered_over_both(struck, 4))
            dropped = sum(_is_dropped(each) for each in sockets)
        away = sum(status != 200 for _, status in readiness.seen)
        yield in_flight(
            f"{clients} of each protocol do not read: others", load.outcomes, struck, None
        )
        yield Line("  not ready meanwhile", f"{away} of {len(readiness.seen)}", "0", not away)
        yield afterwards(load.outcomes, struck, right)
        yield Line(
            "  HTTP clients that were left",
            f"{dropped} of {clients} within {WATCHED_S:g} s",
            "all",
            dropped == clients,
        )
        growth = {role: (size - memory[role]) / _MIB for role, size in most.items()}
        yield Line(
            "  memory meanwhile",
            ", ".join(f"{role} {size:+.0f} MiB" for role, size in growth.items()),
            f"<= +{GROWTH_MIB} MiB each",
            max(growth.values()) <= GROWTH_MIB,
        )
        yield nobody_there(service)
        yield nothing_more(subject)
        yield from ending(subject)


def _memory(service: Service) -> dict[str, int]:
    """Resident bytes of each process."""
    pages = {
        role: int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        for role, pid in service.pids.items()
    }
    return {role: count * 4096 for role, count in pages.items()}


def _over_http(service: Service) -> socket.socket:
    body = json.dumps({"prompt": "x", "stream": "draft", "max_tokens": 900, **ENDLESS}).encode()
    host, _, port = service.http.rpartition(":")
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    opened.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return opened


def _is_dropped(opened: socket.socket) -> bool:
    """Whether the other end has gone, without its last words."""
    opened.settimeout(5.0)
    last = b""
    try:
        while part := opened.recv(1 << 16):
            last = part[-64:]
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return b"[DONE]" not in last


@contextmanager
def _over_grpc(service: Service) -> Iterator[None]:
    """A stream that nobody takes anything from; the client leaves after the block."""
    with grpc.insecure_channel(service.grpc) as channel:
        infer = channel.unary_stream(
            STREAM_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        request = encode_request("x", "draft", {**ENDLESS, "max_new_tokens": 900})
        call = infer(request, timeout=300)
        try:
            yield
        finally:
            call.cancel()
