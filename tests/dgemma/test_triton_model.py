from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma import triton_model
from dgemma.answer import Delta
from dgemma.errors import EngineFailure, InvalidRequest, Unauthenticated
from dgemma.metrics.exporter import TritonExporter
from dgemma.metrics.families import FAMILIES
from dgemma.metrics.metrics import Metrics
from dgemma.request import RawRequest, Request, StreamMode
from dgemma.scheduler.events import Block, Finished, Sink
from dgemma.scheduler.stats import SchedulerStats
from dgemma.scheduler.tenancy import Tenant
from dgemma.service import Service
from dgemma.tenants.caller import Caller
from dgemma.triton_model import TritonModel
from tests.dgemma import fake_pb_utils as pb
from tests.dgemma.fake_pb_utils import InferenceRequest, failure_of, outputs, texts
from tests.dgemma.hand_made import SAMPLING, USAGE, annotate

PATIENCE_S = 20.0
KEY = {"authorization": "Bearer acme"}


class EchoParser:
    """The prompt is the answer; `bad` prompts are refused and `odd` ones are a bug."""

    def parse(self, raw: RawRequest, request_id: str) -> Request:
        text = (raw.text_input or b"").decode()
        if text == "bad":
            raise InvalidRequest("text_input", "got bad; allowed: good")
        if text == "odd":
            raise KeyError("odd")
        return Request(
            request_id,
            tuple(text.encode()),
            SAMPLING,
            StreamMode((raw.stream or b"block").decode()),
            None,
        )


class EchoScheduler:
    """Answers at once with the prompt as one block, unless `holding` is set."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[Request, Sink]] = {}
        self.ids: list[str] = []
        self.holding = threading.Event()
        self.failing = False

    @property
    def busy(self) -> bool:
        return bool(self.running)

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(slots=1, running=len(self.running))

    def submit(self, request: Request, sink: Sink) -> None:
        self.ids.append(request.id)
        self.running[request.id] = (request, sink)

    def cancel(self, request_id: str) -> None:
        if request_id in self.running:
            self.running.pop(request_id)[1](Finished("cancelled", USAGE))

    def step(self) -> bool:
        if self.holding.is_set():
            threading.Event().wait(0.001)  # a pass takes its time
            return True
        for request_id, (request, sink) in list(self.running.items()):
            text = bytes(request.prompt).decode()
            sink(Block(0, Delta(text, request.prompt, "stop"), 2))
            failure = EngineFailure("a pass failed") if self.failing else None
            sink(Finished("error" if failure else "stop", USAGE, failure))
            del self.running[request_id]
        return True


def metrics_of(service: Service) -> Metrics:
    return Metrics(TritonExporter(pb, FAMILIES), service, "demo")


@contextmanager
def model(
    scheduler: EchoScheduler, drain_timeout_s: float = PATIENCE_S, door: Door | None = None
) -> Iterator[TritonModel]:
    service = Service(EchoParser(), scheduler, annotate, door=door)  # type: ignore[arg-type]
    serving = TritonModel(pb, service, drain_timeout_s, metrics_of(service))
    try:
        yield serving
    finally:
        scheduler.holding.clear()
        serving.finalize()


def ask(text: str, request_id: str = "", **tensors: Any) -> InferenceRequest:
    return InferenceRequest({"text_input": texts(text), **tensors}, request_id)


# Requests in, responses out


def test_a_request_is_answered_block_by_block_and_the_last_response_is_final() -> None:
    request = ask("hi")
    with model(EchoScheduler()) as serving:
        assert serving.execute([request]) is None
        assert request.sender.done.wait(PATIENCE_S)
    (first, first_flags), (last, last_flags) = request.sender.sent
    assert (first_flags, last_flags) == (0, pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    assert outputs(first)["text_output"] == "hi"
    assert outputs(first)["kind"] == "block"
    assert outputs(last)["kind"] == "final"
    assert outputs(last)["finish_reason"] == "stop"
    assert json.loads(outputs(last)["usage"])["seed"] == USAGE.seed


def test_requests_of_one_call_are_answered_each_by_itself() -> None:
    requests = [ask(f"text {number}", stream=texts("none")) for number in range(10)]
    with model(EchoScheduler()) as serving:
        serving.execute(requests)
        for request in requests:
            assert request.sender.done.wait(PATIENCE_S)
    for number, request in enumerate(requests):
        [(response, _)] = request.sender.sent
        assert outputs(response)["text_output"] == f"text {number}"


def test_clients_may_send_the_same_id_twice() -> None:
    scheduler = EchoScheduler()
    requests = [ask("a", "same"), ask("b", "same"), ask("c"), ask("d")]
    with model(scheduler) as serving:
        serving.execute(requests)
        for request in requests:
            assert request.sender.done.wait(PATIENCE_S)
            assert request.sender.sent[-1][0].error is None
    assert len(set(scheduler.ids)) == 4
    assert [request_id.startswith("same") for request_id in scheduler.ids] == [True] * 2 + [
        False
    ] * 2


def test_a_client_that_has_gone_is_cancelled() -> None:
    scheduler = EchoScheduler()
    scheduler.holding.set()
    request = ask("hi")
    with model(scheduler) as serving:
        serving.execute([request])
        assert not request.sender.done.wait(0.02)
        request.sender.cancelled = True
        assert request.sender.done.wait(PATIENCE_S)
    [(response, _)] = request.sender.sent
    assert outputs(response)["finish_reason"] == "cancelled"


# Errors


def test_a_bad_request_is_an_invalid_argument_and_the_ones_beside_it_go_on() -> None:
    before, bad, after = ask("before"), ask("bad"), ask("after")
    with model(EchoScheduler()) as serving:
        serving.execute([before, bad, after])
        for request in (before, after):
            assert request.sender.done.wait(PATIENCE_S)
            assert outputs(request.sender.sent[0][0])["kind"] == "block"
    error = failure_of(bad.sender)
    assert error.code == pb.TritonError.INVALID_ARG
    assert str(error) == "[INVALID_ARGUMENT] text_input: got bad; allowed: good"


def test_a_bug_while_a_request_is_read_is_internal_and_ends_that_request_alone() -> None:
    odd, good = ask("odd"), ask("good")
    with model(EchoScheduler()) as serving:
        serving.execute([odd, good])
        assert good.sender.done.wait(PATIENCE_S)
    error = failure_of(odd.sender)
    assert error.code == pb.TritonError.INTERNAL
    assert "could not be read" in str(error)


def test_an_engine_that_fails_ends_the_stream_with_its_error() -> None:
    scheduler, request = EchoScheduler(), ask("hi", stream=texts("none"))
    scheduler.failing = True
    with model(scheduler) as serving:
        serving.execute([request])
        error = failure_of(request.sender)
    assert (error.code, str(error)) == (
        pb.TritonError.INTERNAL,
        "[INTERNAL] a pass failed",
    )


def test_after_finalize_requests_are_unavailable() -> None:
    request = ask("late")
    with model(EchoScheduler()) as serving:
        serving.finalize()
        serving.execute([request])
        assert failure_of(request.sender).code == pb.TritonError.UNAVAILABLE


# Who asks


class Door:
    """Lets in whoever says `Bearer acme`."""

    def identify(self, authorization: str | None) -> Caller:
        if authorization != "Bearer acme":
            raise Unauthenticated(f"not known: {authorization}")
        return Caller(Tenant("acme"), b"salt")

    def close(self) -> None:
        pass


def test_a_request_runs_as_the_tenant_that_its_metadata_names() -> None:
    scheduler = EchoScheduler()
    scheduler.holding.set()
    request = InferenceRequest({"text_input": texts("hi")}, metadata=KEY)
    with model(scheduler, door=Door()) as serving:
        serving.execute([request])
        serving._service.drain(0.05)
        [(running, _)] = scheduler.running.values()
        assert (running.tenant, running.cache_salt) == (Tenant("acme"), b"salt")


@pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer x"}, {"authorization": 3}])
def test_others_are_unauthenticated_and_nothing_of_theirs_is_read(metadata: Any) -> None:
    bad = InferenceRequest({"text_input": texts("bad", "two")}, metadata=metadata)
    good = InferenceRequest({"text_input": texts("hi")}, metadata=KEY)
    with model(EchoScheduler(), door=Door()) as serving:
        serving.execute([bad, good])
        assert good.sender.done.wait(PATIENCE_S)
    error = failure_of(bad.sender)
    assert error.code == pb.TritonError.INVALID_ARG
    assert str(error) == f"[UNAUTHENTICATED] not known: {metadata.get('authorization')}"


# The end


def test_finalize_lets_running_requests_finish() -> None:
    scheduler, request = EchoScheduler(), ask("hi")
    scheduler.holding.set()
    with model(scheduler) as serving:
        serving.execute([request])
        threading.Timer(0.05, scheduler.holding.clear).start()
        serving.finalize()
        assert request.sender.done.is_set()
    assert outputs(request.sender.sent[-1][0])["finish_reason"] == "stop"


def test_finalize_cancels_what_does_not_finish_in_time() -> None:
    scheduler, request = EchoScheduler(), ask("hi")
    scheduler.holding.set()
    with model(scheduler, drain_timeout_s=0.01) as serving:
        serving.execute([request])
        serving.finalize()
        assert request.sender.done.is_set()
    assert outputs(request.sender.sent[-1][0])["finish_reason"] == "cancelled"


def test_finalize_ends_the_threads() -> None:
    before = set(threading.enumerate())
    with model(EchoScheduler()) as serving:
        assert set(threading.enumerate()) > before
        serving.finalize()
        assert set(threading.enumerate()) == before


def test_every_request_is_counted_whatever_became_of_it() -> None:
    pb.MetricFamily.made.clear()
    requests = [ask("hi"), ask("bad"), ask("odd"), InferenceRequest({}, metadata={})]
    with model(EchoScheduler(), door=Door()) as serving:
        for request in requests[:3]:
            request.metadata.update(KEY)
        serving.execute(requests)
        for request in requests:
            assert request.sender.done.wait(PATIENCE_S)
    counted = {
        metric.labels["outcome"]: metric.value
        for name, metric in pb.MetricFamily.made
        if name == "dgemma_requests_total" and metric.value
    }
    assert counted == {"stop": 1, "invalid": 1, "failed": 1, "unauthenticated": 1}


# Start-up


def start_in(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> TritonModel:
    for name in ("NIM_MODEL_PATH", "DGEMMA_CHECKPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return triton_model.start(pb)


def test_a_missing_setting_refuses_the_start_and_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = {"DGEMMA_CHECKPOINT": str(tmp_path), "NIM_CACHE_PATH": str(tmp_path / "none")}
    with pytest.raises(pb.TritonModelException, match="NIM_MODEL_PATH: not set; set it to the"):
        start_in(environment, monkeypatch)


def test_a_missing_engine_refuses_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_checkpoint: Path
) -> None:
    environment = {"NIM_MODEL_PATH": str(tmp_path), "DGEMMA_CHECKPOINT": str(demo_checkpoint)}
    with pytest.raises(pb.TritonModelException, match=r"manifest\.json"):
        start_in(environment, monkeypatch)


def test_numpy_2_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(pb.TritonModelException, match=r"numpy 2\.1\.0 .*pip install 'numpy<2'"):
        start_in({}, monkeypatch)
