"""A storm of requests on a real server, and what can be seen of it from outside afterwards.

Knows clients that stay, that leave and that send nonsense; what a server may leave behind is
processes, shared memory, and slots or places in the queue that nobody has.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from tritonclient.utils import InferenceServerException

from dgemma.client import Client
from dgemma.client_errors import ClientError
from dgemma.geometry import Geometry
from dgemma.settings import Settings
from dgemma.tenants.days import Days
from dgemma.triton_server import shared_memory
from dgemma.triton_server.processes import session_members
from dgemma.triton_server.server import TritonServer
from tests.accept.main_job import Line
from tests.accept.storm import any_settings
from tests.bench.__main__ import MODEL_REPOSITORY
from tests.identity import any_text
from tests.triton.raw import Answered, Stream, inputs, stream

SLOTS, QUEUED, CLIENTS = 4, 8, 16
BAD: list[dict[str, Any]] = [
    {"sampling": {"seed": -1}},
    {"sampling": "{"},
    {"sampling": {"max_new_tokens": 100_000}},
    {"sampling": {"temperature": 1}},
    {"canvas_template": "<|gap:0|>"},
    {"messages": "[]"},
    {"stream": "all"},
]
LONG: dict[str, Any] = {
    "max_denoising_steps": 200,
    "confidence_threshold": 0.0,
    "ignore_eos": True,
    "seed": 1,
}
FILLING = {**LONG, "max_new_tokens": 96}


class Storm:
    """What came of all requests; `run` is for many threads."""

    def __init__(self, url: str, length: int) -> None:
        self.url, self.length = url, length
        self.outcomes: Counter[str] = Counter()
        self.once = self.bad = 0
        self._lock = threading.Lock()

    def run(self, seed: int, requests: int, done: Progress, task: Any) -> None:
        """One client; every request has a stream, so that its end can be seen."""
        rng = random.Random(seed)
        for _ in range(requests):
            kind = rng.random()
            if kind < 0.2:
                outcome, once = self._leave(rng), True
            else:
                bad = kind < 0.35
                tensors = self._tensors(rng, bad)
                with stream(self.url) as opened:
                    opened.send(tensors)
                    outcome, once = _to_the_end(opened)
                with self._lock:
                    self.bad += bad
            with self._lock:
                self.outcomes[outcome] += 1
                self.once += once
            done.advance(task)

    def _tensors(self, rng: random.Random, bad: bool) -> list[Any]:
        text = any_text(rng, rng.randint(1, 3 * self.length))
        if bad:
            return inputs(**{"text_input": text, **rng.choice(BAD)})
        return inputs(
            text_input=text,
            stream=rng.choice(["none", "block", "draft"]),
            sampling=any_settings(rng, self.length),
        )

    def _leave(self, rng: random.Random) -> str:
        """Go away at the first thing that is heard, or after a while, as from the queue."""
        with Client(self.url) as client:
            updates = client.stream(any_text(rng, 50), stream="draft", **LONG)
            try:
                next(updates)
            except ClientError as error:
                return f"left, {type(error).__name__}"
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.05)
            updates.close()
        return "left"


def _to_the_end(opened: Stream) -> tuple[str, bool]:
    """The outcome, and whether there was one final response or one error, and nothing behind it."""
    outcome = ""
    try:
        while True:
            response = opened.answer()
            if response.final:
                outcome = response.text("finish_reason")
                break
    except InferenceServerException as error:
        outcome = str(error).partition("]")[0].rpartition("[")[2]
    opened.client.stop_stream()  # which waits for all that is under way
    return outcome, opened.heard() == 0


def through_triton(engine: Path, checkpoint: Path, requests: int) -> Iterator[Line]:
    """Lines about the storm, and about what is left of it."""
    length = Geometry.from_checkpoint(checkpoint).canvas_length
    before = set(shared_memory.DIRECTORY.glob(shared_memory.PREFIX + "*"))
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Path(scratch) / "ledger"
        settings = Settings.load(
            engine=engine,
            checkpoint=checkpoint,
            slots=SLOTS,
            max_queued=QUEUED,
            ledger=ledger,
            log_level="error",
        )
        log = Path(scratch) / "triton.log"
        with TritonServer(MODEL_REPOSITORY, env=settings.environment(), log=log) as server:
            session = server.pid
            storm = Storm(server.grpc_url, length)
            with (
                Progress(console=Console(stderr=True), transient=True) as done,
                ThreadPoolExecutor(CLIENTS) as clients,
            ):
                task = done.add_task("requests", total=requests)
                each = [requests // CLIENTS + (i < requests % CLIENTS) for i in range(CLIENTS)]
                list(clients.map(storm.run, itertools.count(), each, *_same(done, task)))
            answered, refused = fill(server.grpc_url)
            server.check()
        written = sum(totals.requests for totals in Days(ledger).usage().values())
    regions = set(shared_memory.DIRECTORY.glob(shared_memory.PREFIX + "*")) - before
    yield Line(
        f"{requests} requests to a real server",
        ", ".join(f"{count} {name}" for name, count in storm.outcomes.most_common()),
        "",
    )
    yield Line("  had one final answer", f"{storm.once}", f"{requests}", storm.once == requests)
    known = written - SLOTS - QUEUED - 1
    yield Line(
        "  ends in the ledger",
        f"{known}",
        f"{requests - storm.bad}, all but bad input",
        known == requests - storm.bad,
    )
    yield Line(
        "  room afterwards, at once",
        f"{answered} answered, {refused} refused",
        f"{SLOTS} slots + {QUEUED} places, then 1 refused",
        (answered, refused) == (SLOTS + QUEUED, 1),
    )
    left = [*session_members(session), *regions]
    yield Line("  processes, shared memory left", str(left or "none"), "none", not left)


def fill(url: str) -> tuple[int, int]:
    """Take every slot and every place in the queue, and ask once more: answered and refused."""
    replies, tensors = [], inputs(text_input="x", stream="none", sampling=FILLING)
    with stream(url) as opened:
        for number in range(SLOTS + QUEUED + 1):
            opened.send(tensors, str(number))
        while opened.open:
            replies.append(opened.receive())
    answered = sum(isinstance(reply, Answered) and reply.final for reply in replies)
    return answered, sum("[RESOURCE_EXHAUSTED]" in str(reply) for reply in replies)


def _same(*values: Any) -> list[Any]:
    return [itertools.repeat(value) for value in values]
