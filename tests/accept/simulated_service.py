"""How busy a simulated device is kept by the whole service, real Triton included.

Knows clients and the metrics of the device; what was promised is `tests.accept.simulated`'s.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from dgemma.client import Client, gather
from dgemma.metrics.metrics import DEVICE, EVERY_S
from dgemma.settings import Settings
from dgemma.simulated.device import DeviceTime
from dgemma.triton_server.server import TritonServer

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "build" / "demo"
CONTEXT = 32768
ANSWER = {"max_new_tokens": 1024, "ignore_eos": True}
_SECONDS = re.compile(rf'{DEVICE}{{[^}}]*state="(\w+)"[^}}]*}} (\S+)')


@dataclass(frozen=True)
class Occupancy:
    """What a number of streams got of a device."""

    wall_s: float
    spent: DeviceTime
    usages: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        return sum(usage["completion_tokens"] for usage in self.usages)

    @property
    def passes(self) -> int:
        """Of all requests, as if none had shared one."""
        return sum(usage["passes"] for usage in self.usages)


@contextmanager
def simulated_server(platform: str, slots: int, context: int = CONTEXT) -> Iterator[TritonServer]:
    settings = Settings.load(
        simulate=platform,
        checkpoint=CHECKPOINT,
        slots=slots,
        max_model_len=context,
        log_level="warning",
    )
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "triton.log"
        repository = REPOSITORY / "model_repository"
        with TritonServer(repository, env=settings.environment(), log=log) as server:
            assert "nothing is computed and answers mean nothing" in log.read_text()
            yield server


def alone(server: TritonServer, requests: int) -> Occupancy:
    """One stream, request after request."""
    with Client(server.grpc_url) as client:
        client.generate("warm", seed=0, max_new_tokens=256)
        before, began = device_time(server), time.monotonic()
        usages = [
            client.generate(f"{seed} words", seed=seed, **ANSWER).usage
            for seed in range(1, requests + 1)
        ]
        wall_s = time.monotonic() - began
    return Occupancy(wall_s, device_time(server) - before, usages)


def together(server: TritonServer, streams: int, seconds: float) -> Occupancy:
    """As many streams at once, each with request after request, of prompts of several lengths."""
    usages: list[dict[str, Any]] = []
    until = time.monotonic() + seconds

    def ask(stream: int) -> None:
        with Client(server.grpc_url) as client:
            for number in itertools.count():
                if time.monotonic() >= until:
                    return
                seed = 1000 * stream + number
                prompt = "word " * (1 + seed % 7 * 50)
                answer = gather(client.stream(prompt, seed=seed, **ANSWER))
                usages.append(answer.usage)

    with ThreadPoolExecutor(streams) as clients:
        before, began = device_time(server), time.monotonic()
        running = [clients.submit(ask, stream) for stream in range(streams)]
        time.sleep(max(0.0, until - time.monotonic()))
        spent, wall_s = device_time(server) - before, time.monotonic() - began
    for each in running:
        each.result()
    return Occupancy(wall_s, spent, usages)


def device_time(server: TritonServer) -> DeviceTime:
    """As the server's metrics say, once all that has ended is in them."""
    time.sleep(2 * EVERY_S)
    with urlopen(server.metrics_url) as reply:
        found = {state: float(value) for state, value in _SECONDS.findall(reply.read().decode())}
    return DeviceTime(**found)
