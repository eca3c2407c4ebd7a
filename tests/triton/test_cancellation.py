"""A client that goes away gives its slot back within two passes, however it goes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dgemma.client import Cancelled, Client, Unavailable
from dgemma.triton_server.server import TritonServer
from tests.triton.raw import Answered, Stream, inputs, stream
from tests.triton.servers import running

# A pass of many rows on one thread lasts longer than the news of a cancellation takes to arrive,
# also where other processes keep this one from reading what it was sent.
SLOTS = 16
ENDLESS: dict[str, Any] = {
    "max_new_tokens": 96,
    "max_denoising_steps": 1024,
    "confidence_threshold": 0.0,
    "ignore_eos": True,
    "seed": 1,
}
ONE_STEP = {"max_denoising_steps": 1}
Leaving = Callable[[str], AbstractContextManager[Callable[[], object]]]
CLIENT_PROCESS = """
import json, sys
from dgemma.client import stream
for update in stream("gone", url=sys.argv[1], stream="draft", **json.loads(sys.argv[2])):
    print(update.kind, update.denoising_step, flush=True)
"""


@pytest.fixture(scope="module")
def full_server(
    demo_environment: dict[str, str],
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A server whose slots are all taken once a test has its requests running."""
    log = tmp_path_factory.mktemp("cancellation") / "server.log"
    env = {**demo_environment, "DGEMMA_SLOTS": str(SLOTS), "DGEMMA_THREADS": "1"}
    with running(model_repository, env, log) as server:
        yield server


# Clients that run a request and then go, when the function they yield is called


@contextmanager
def raw_stream_that_is_cancelled(url: str) -> Iterator[Callable[[], object]]:
    with stream(url) as opened:
        opened.send(inputs(text_input="gone", stream="draft", sampling=ENDLESS))
        opened.answer()
        yield lambda: opened.client.stop_stream(cancel_requests=True)


@contextmanager
def loop_that_is_left(url: str) -> Iterator[Callable[[], object]]:
    with Client(url) as client:
        updates = client.stream("gone", stream="draft", **ENDLESS)
        next(updates)
        yield updates.close


@contextmanager
def channel_that_is_closed(url: str) -> Iterator[Callable[[], object]]:
    client, runs = Client(url), threading.Event()

    def consume() -> None:
        with suppress(Cancelled, Unavailable):
            for _ in client.stream("gone", stream="draft", **ENDLESS):
                runs.set()

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        assert runs.wait(60)
        yield client.close
    finally:
        client.close()
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def process_that_is_killed(url: str) -> Iterator[Callable[[], object]]:
    command = [sys.executable, "-c", CLIENT_PROCESS, url, json.dumps(ENDLESS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith(b"draft")
            yield lambda: (process.kill(), process.wait())
        finally:
            process.kill()


# The count


@dataclass(frozen=True)
class Sample:
    """What a witness heard while a client left."""

    passes: int  # from the last one heard of when it had gone to a waiter's first one
    timely: bool  # whether the news came in the rhythm of the passes


def next_step(opened: Stream) -> Answered:
    """Listen for one more pass of the witness, when nobody else can be heard."""
    response = opened.answer()
    assert response.request_id == "witness", "there was a free slot"
    return response


def leave(opened: Stream, url: str, client: Leaving) -> Sample:
    """Have a client go. The waiter can begin only in its slot."""
    waiter = inputs(text_input="late", stream="draft", sampling={**ENDLESS, **ONE_STEP})
    with client(url) as go:
        opened.send(waiter, "waiter")
        heard = [next_step(opened) for _ in range(8)]
        go()
        more = opened.heard()  # when the client had gone; more may come while this is read
        while (response := opened.answer()).request_id != "waiter":
            heard.append(response)
            assert len(heard) < 100, "not free after a hundred passes"
    arrived = [each.arrived for each in heard]
    gaps = [later - earlier for earlier, later in pairwise(arrived)]
    usual = median(gaps)
    while not (response.request_id == "waiter" and response.final):
        response = opened.answer()
    return Sample(
        passes=len(heard) - min(8 + more, len(heard)),
        timely=all(0.6 < gap / usual < 1.4 for gap in gaps[6:]),
    )


@pytest.mark.quiet
@pytest.mark.parametrize(
    "client",
    [
        raw_stream_that_is_cancelled,
        loop_that_is_left,
        channel_that_is_closed,
        process_that_is_killed,
    ],
)
def test_a_client_that_goes_frees_its_slot_within_two_passes(
    full_server: TritonServer, client: Leaving
) -> None:
    with stream(full_server.grpc_url) as opened:
        opened.send(inputs(text_input="w", stream="draft", sampling=ENDLESS), "witness")
        for number in range(SLOTS - 2):
            opened.send(inputs(text_input="f", stream="none", sampling=ENDLESS), f"filler{number}")
        next_step(opened)
        samples: list[Sample] = []
        # A machine too busy to run the passes evenly, or to tell of them in time, shows nothing.
        while sum(sample.timely for sample in samples) < 3 and len(samples) < 20:
            samples.append(leave(opened, full_server.grpc_url, client))
    counts = [sample.passes for sample in samples if sample.timely]
    # Two passes may end before the slot is free: the one that runs when the client goes and the one
    # that runs when it is noticed. The third is the waiter's, of which the witness tells first.
    assert counts and max(counts) <= 3, samples


def test_all_slots_are_free_after_cancellations(full_server: TritonServer) -> None:
    """Requests as many as there are slots run side by side after all the cancellations."""
    sampling = {**ENDLESS, "max_denoising_steps": 20}
    with stream(full_server.grpc_url) as opened:
        for number in range(SLOTS):
            tensors = inputs(text_input="x", stream="none", sampling=sampling)
            opened.send(tensors, str(number))
        finals = [opened.answer() for _ in range(SLOTS)]
    assert all(final.usage["passes"] == 20 for final in finals)
    began = [final.usage["queue_ms"] for final in finals]
    ended = [final.usage["total_ms"] for final in finals]
    assert max(began) < min(ended)
