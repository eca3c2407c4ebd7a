"""The end of a server: what is in flight is finished, and nothing stays behind."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dgemma.client import Client, ClientError, Generation, gather
from dgemma.log_lines import is_ours
from dgemma.triton_server.processes import session_members
from dgemma.triton_server.server import TritonServer
from tests.triton.servers import Serve, Traces, kill, running, serving, wait_for

STEPS = 100  # enough that a request is in flight for a while
LONG: dict[str, Any] = {
    "max_new_tokens": 96,
    "max_denoising_steps": STEPS,
    "confidence_threshold": 0.0,
    "ignore_eos": True,
    "seed": 1,
}


class InFlight:
    """A request on a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._began = threading.Event()
        self._generation: Generation | None = None
        self._error: ClientError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._began.wait(60)

    def result(self) -> Generation:
        """The answer, or the error that came in its place, raised."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "neither an answer nor an error has come"
        if self._error is not None:
            raise self._error
        assert self._generation is not None
        return self._generation

    def _run(self) -> None:
        try:
            with Client(self._url) as client:
                updates = client.stream("in flight", stream="draft", timeout_s=60, **LONG)
                self._generation = gather(self._noticed(updates))
        except ClientError as error:
            self._error = error
            self._began.set()

    def _noticed(self, updates: Any) -> Any:
        for update in updates:
            self._began.set()
            yield update


@contextmanager
def serve_ready(
    model_repository: Path, env: dict[str, str], log: Path
) -> Iterator[tuple[Serve, str, Traces]]:
    """`dgemma serve`, its gRPC address, and what it may leave behind."""
    with serving(model_repository, env, log) as serve:
        url = serve.wait_until_ready()
        traces = serve.wait_for_server()
        assert traces.regions, "a server without shared memory would hide a leak"
        yield serve, url, traces


def test_stop_finishes_what_is_in_flight(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    with running(model_repository, demo_environment, tmp_path / "log") as server:
        request = InFlight(server.grpc_url)
        server.stop()
        answer = request.result()
    assert answer.finish_reason == "length"
    assert answer.usage["denoising_steps"] == [STEPS]


def test_every_line_of_a_log_in_json_is_json(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    environment = demo_environment | {"NIM_JSONL_LOGGING": "1"}
    with serve_ready(model_repository, environment, tmp_path / "log") as (serve, url, traces):
        with Client(url) as client:
            client.generate("in a log", **(LONG | {"max_denoising_steps": 1}))
        serve.process.terminate()
        assert serve.exit_code() == 0
        assert traces.left() == []
    lines = serve.output.splitlines()
    assert all(is_ours(line) for line in lines), serve.output
    said = [json.loads(line) for line in lines]
    assert {line["source"] for line in said} == {"supervisor", "backend", "triton"}
    # The server's last words are there, after the supervisor's.
    assert "successfully unloaded" in " ".join(line["message"] for line in said[-3:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_serve_finish_what_is_in_flight(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path, number: int
) -> None:
    with serve_ready(model_repository, demo_environment, tmp_path / "log") as (serve, url, traces):
        request = InFlight(url)
        serve.process.send_signal(number)
        assert request.result().usage["denoising_steps"] == [STEPS]
        assert serve.exit_code() == 0
        assert "stopping: finishing what is in flight" in serve.output
        assert traces.left() == []


@pytest.mark.parametrize("json_log", ["0", "1"])
def test_a_killed_serve_leaves_nothing_running(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path, json_log: str
) -> None:
    # With a log in JSON its server writes to a pipe, which ends with it.
    environment = demo_environment | {"NIM_JSONL_LOGGING": json_log, "DGEMMA_HTTP": "1"}
    with serve_ready(model_repository, environment, tmp_path / "log") as (serve, url, traces):
        front = serve.child("front")
        request = InFlight(url)
        serve.process.kill()
        assert request.result().finish_reason == "length"
        wait_for("nothing is left", lambda: traces.left() + session_members(front) == [])


def test_serve_may_end_with_an_error_when_a_process_of_its_server_dies(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    environment = demo_environment | {"DGEMMA_ON_FAILURE": "exit"}
    with serve_ready(model_repository, environment, tmp_path / "log") as (serve, _, traces):
        kill(traces.stub)
        assert serve.exit_code() == 1
        assert "error: the model server: a model's process has died" in serve.output
        assert "Traceback" not in serve.output
        assert traces.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["the server starts", "the model loads"])
def test_a_signal_during_the_start_ends_it_cleanly(
    demo_environment: dict[str, str],
    model_repository: Path,
    tmp_path: Path,
    number: int,
    moment: str,
) -> None:
    with serving(model_repository, demo_environment, tmp_path / "log") as serve:
        traces = serve.wait_for_server()
        if moment == "the model loads":
            wait_for("the stub runs", lambda: len(traces.processes) > 1)
        serve.process.send_signal(number)
        assert serve.exit_code() == 130
        assert "error: interrupted before the service was ready" in serve.output
        assert "ready: " not in serve.output.splitlines()
        assert "Traceback" not in serve.output
        assert traces.left() == []


def test_a_server_ends_when_the_process_that_started_it_is_gone_before_it_is_ready(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    with serving(model_repository, demo_environment, tmp_path / "log") as serve:
        traces = serve.wait_for_server()
        serve.process.kill()
        wait_for("nothing is left", lambda: traces.left() == [])


def test_a_stopped_server_can_be_started_again(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    server = TritonServer(model_repository, env=demo_environment, log=tmp_path / "log")
    for _ in range(2):
        with server:
            traces = Traces.of(server.pid)
            with Client(server.grpc_url) as client:
                assert client.generate("x", **{**LONG, "max_denoising_steps": 1}).usage
        assert traces.left() == []
