"""A simulated platform behind the real Triton server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgemma.client import Client, Generation, RequestRejected
from dgemma.settings import Settings
from dgemma.triton_server.server import TritonServer
from tests.accept.simulated_service import device_time
from tests.triton.scraped import scrape
from tests.triton.servers import running

PLATFORM = "dgx-station-nvfp4-floor"  # the quickest: passes of a few milliseconds
STREAMS = 4


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulated") / "triton.log"


@pytest.fixture(scope="module")
def server(demo_checkpoint: Path, model_repository: Path, log: Path) -> Iterator[TritonServer]:
    settings = Settings.load(
        simulate=PLATFORM,
        checkpoint=demo_checkpoint,
        slots=STREAMS,
        max_model_len=32768,
        log_level="warning",
    )
    with running(model_repository, settings.environment(), log) as server:
        yield server


def ask(server: TritonServer, seed: int) -> Generation:
    with Client(server.grpc_url) as client:
        return client.generate("hello", seed=seed, max_new_tokens=512, return_token_ids=True)


def test_answers_are_the_same_alone_and_together_and_say_what_they_are(
    server: TritonServer,
) -> None:
    with ThreadPoolExecutor(STREAMS) as clients:
        crowd = list(clients.map(lambda seed: ask(server, seed), range(STREAMS)))
    for seed, answer in enumerate(crowd):
        alone = ask(server, seed)
        assert (alone.text, alone.token_ids) == (answer.text, answer.token_ids)
        assert alone.usage["denoising_steps"] == answer.usage["denoising_steps"]
        assert alone.usage["simulated"] == PLATFORM
        assert alone.usage["passes"] == sum(alone.usage["denoising_steps"])


def test_the_device_s_time_is_a_metric(server: TritonServer) -> None:
    before = device_time(server)
    answer = ask(server, 5)
    spent = device_time(server) - before
    assert 0.002 * answer.usage["passes"] < spent.busy < answer.usage["total_ms"] / 1e3
    assert spent.busy > 0.2 * answer.usage["total_ms"] / 1e3
    assert 0 <= spent.starved <= spent.idle


def test_the_metrics_say_simulated(server: TritonServer) -> None:
    [info] = scrape(server).labels("dgemma_engine_info")
    assert info["simulated"] == PLATFORM and info["profile"] == f"simulated-{PLATFORM}"
    assert info["verification"] == "never verified"


def test_a_context_that_the_model_has_and_the_server_has_not_is_refused(
    server: TritonServer,
) -> None:
    with Client(server.grpc_url) as client, pytest.raises(RequestRejected, match="max_model_len"):
        client.generate(input_ids=[100] * 32768, max_new_tokens=1)


def test_the_log_says_simulated(server: TritonServer, log: Path) -> None:
    assert f"simulated {PLATFORM}: nothing is computed and answers mean nothing" in log.read_text()
