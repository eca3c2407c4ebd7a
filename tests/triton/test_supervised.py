"""Faults of a real service, one after another, and its end: who notices what, and how soon."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dgemma.client import Client, ClientError
from dgemma.log_lines import is_ours
from dgemma.triton_server.processes import session_members
from tests.triton.scraped import Page
from tests.triton.servers import Serve, Traces, kill, serving, wait_for
from tests.triton.test_shutdown import LONG

NOT_READY_WITHIN_S = 2.0
ANSWERED_WITHIN_S = 5.0
READY_AGAIN_WITHIN_S = 10.0  # besides the time that a start takes
ENDLESS: dict[str, Any] = LONG | {"max_new_tokens": 900, "max_denoising_steps": 1024}
HTTP: dict[str, Any] = {
    "prompt": "x",
    "stream": "draft",
    "max_tokens": 96,
    "max_denoising_steps": 300,
    "confidence_threshold": 0.0,
    "ignore_eos": True,
}


class Service:
    """`dgemma serve` with everything, as it is seen from outside."""

    def __init__(self, serve: Serve) -> None:
        began = time.monotonic()
        self.serve, self.grpc = serve, serve.wait_until_ready()
        self.start_s = time.monotonic() - began
        self.http = serve.output.partition(", HTTP ")[2].partition(",")[0]

    @property
    def triton(self) -> Traces:
        return Traces.of(self.serve.child("tritonserver"))

    def status(self) -> int:
        """Of /v1/health/ready; 0 where nobody answers."""
        try:
            return httpx2.get(f"{self.http}/v1/health/ready", timeout=5.0).status_code
        except httpx2.HTTPError:
            return 0

    def wait_until_ready(self) -> None:
        wait_for("the service is ready", lambda: self.status() == 200)

    def starts(self) -> dict[str, float]:
        """How often each part has been started, by the metrics."""
        page = Page.of(httpx2.get(f"{self.http}/v1/metrics", timeout=5.0).text)
        return {part: page.total("dgemma_starts_total", part=part) for part in ("triton", "front")}

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.serve.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def service(
    demo_environment: dict[str, str],
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("supervised") / "log"
    env = {
        "DGEMMA_HTTP": "1",
        "DGEMMA_SLOTS": "3",
        "DGEMMA_DRAIN_DELAY_S": "0.3",
        "NIM_JSONL_LOGGING": "1",
    }
    with serving(model_repository, demo_environment | env, log) as serve:
        yield Service(serve)


@contextmanager
def in_flight(service: Service, over_grpc: int) -> Iterator[list[float]]:
    """One request over HTTP and some over gRPC, all begun; the moments at which they end."""
    ended: list[float] = []
    began = threading.Barrier(over_grpc + 2)

    def ask_grpc() -> None:
        try:
            with Client(service.grpc) as client:
                for number, _ in enumerate(client.stream("x", stream="draft", **ENDLESS)):
                    if number == 0:
                        began.wait(60)
        except ClientError:
            ended.append(time.monotonic())

    def ask_http() -> None:
        body = HTTP | {"max_tokens": 900, "max_denoising_steps": 1024}
        url = f"{service.http}/v1/completions"
        try:
            with httpx2.stream("POST", url, json=body, timeout=60) as response:
                for number, _ in enumerate(response.iter_lines()):
                    if number == 0:
                        began.wait(60)
        except httpx2.HTTPError:
            pass
        ended.append(time.monotonic())

    threads = [threading.Thread(target=ask_grpc) for _ in range(over_grpc)]
    threads.append(threading.Thread(target=ask_http))
    for thread in threads:
        thread.start()
    began.wait(60)
    yield ended
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a request got neither an answer nor an error"
    assert len(ended) == len(threads), "a request was answered before the fault"


def stays_ready_while_all_slots_are_busy(service: Service) -> None:
    until = time.monotonic() + 1.6  # longer than silence would be forgiven
    while time.monotonic() < until:
        assert service.status() == 200
        time.sleep(0.05)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


FAULTS: dict[str, tuple[Callable[[Service], int], Callable[[int], None], int]] = {
    "the stub is killed": (lambda service: service.triton.stub, kill, 2),
    "triton is killed": (lambda service: service.triton.session, kill, 2),
    "the stub is stopped": (lambda service: service.triton.stub, stop, 2),
    "the front is killed": (lambda service: service.serve.child("front"), kill, 0),
}


# What is seen at once needs no quiet; silence is measured against the clock.
QUIET = {"the stub is stopped"}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[pytest.mark.quiet] * (fault in QUIET)) for fault in FAULTS],
)
def test_a_fault_is_seen_answered_and_repaired(service: Service, fault: str) -> None:
    victim, strike, over_grpc = FAULTS[fault]
    service.wait_until_ready()
    files, triton, front = service.files(), service.triton, service.serve.child("front")
    starts = service.starts()
    regions = triton.regions
    with in_flight(service, over_grpc) as ended:
        if fault == "triton is killed":
            stays_ready_while_all_slots_are_busy(service)
        strike(victim(service))
        began = time.monotonic()
        wait_for("it is not ready", lambda: service.status() != 200)
        assert time.monotonic() - began < NOT_READY_WITHIN_S
        service.wait_until_ready()
        assert time.monotonic() - began < service.start_s + READY_AGAIN_WITHIN_S
    assert max(ended) - began < ANSWERED_WITHIN_S
    with Client(service.grpc) as client:
        assert client.generate("x", timeout_s=60, **LONG).finish_reason == "length"
    starts["triton" if over_grpc else "front"] += 1
    assert service.starts() == starts
    if over_grpc:
        assert triton.processes == []
        assert [region for region in regions if region.exists()] == []
    else:
        assert service.triton == triton
        assert session_members(front) == []
    assert service.files() <= files + 1


def test_a_stop_says_that_it_is_not_ready_finishes_what_is_in_flight_and_leaves_nothing(
    service: Service,
) -> None:
    service.wait_until_ready()
    triton, front = service.triton, service.serve.child("front")
    with httpx2.stream("POST", f"{service.http}/v1/completions", json=HTTP, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        service.serve.process.terminate()
        wait_for("it says that it is not ready", lambda: service.status() == 503)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert service.serve.exit_code() == 0
    assert triton.left() == []
    assert session_members(front) == []
    output = service.serve.output.splitlines()
    assert all(is_ours(line) for line in output), service.serve.output
    assert '"front"' in service.serve.output
