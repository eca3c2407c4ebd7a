"""Tenants at a real Triton server: the key in the metadata, the file, and the ledger."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx2
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from dgemma.client import Client, Unauthenticated
from dgemma.front.server import running as running_front
from dgemma.front.settings import FrontSettings
from dgemma.metrics.requests import MOST_TENANTS
from dgemma.metrics.requests import OTHER as OTHERS
from dgemma.tenants.days import Days
from dgemma.triton_server.server import TritonServer
from tests.dgemma.tenants.tenant_files import ACME, OTHER, THIRD, file_of, key_of, tenant
from tests.triton.raw import Stream, inputs
from tests.triton.scraped import scrape_until
from tests.triton.servers import PATIENCE_S, running

CROWD = [f"t-{number}" for number in range(MOST_TENANTS)]
ANSWER = {"seed": 1, "max_new_tokens": 8, "max_denoising_steps": 2}


def answered(url: str, key: str | None) -> bool:
    with Client(url, api_key=key) as client:
        try:
            return bool(client.generate("x", timeout_s=PATIENCE_S, **ANSWER).usage)
        except Unauthenticated:
            return False


def test_a_key_opens_the_door_and_its_tenant_is_charged(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    file, ledger = tmp_path / "tenants.yaml", tmp_path / "ledger"
    file.write_text(file_of(tenant("acme", ACME), tenant("b", OTHER)))
    tenants = {"DGEMMA_TENANTS": str(file), "DGEMMA_LEDGER": str(ledger)}
    with running(model_repository, {**demo_environment, **tenants}, tmp_path / "log") as server:
        url = server.grpc_url
        assert [answered(url, key) for key in (ACME, OTHER, ACME)] == [True] * 3
        assert not answered(url, THIRD)
        with Client(url) as client, pytest.raises(Unauthenticated, match="no API key came"):
            client.generate("x", timeout_s=PATIENCE_S)
        says_plain_tritonclient(url)
        says_the_http_front(url)
        # The file changes; nothing is restarted.
        crowd = [tenant(name, key_of(name)) for name in CROWD]
        file.write_text(file_of(tenant("acme", ACME), tenant("third", THIRD), *crowd))
        deadline = time.monotonic() + PATIENCE_S
        while not answered(url, THIRD):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not answered(url, OTHER)
        say_the_metrics(server)
    used = Days(ledger).usage()
    assert {name: totals.requests for name, totals in used.items() if name not in CROWD} == {
        "acme": 6,  # three of them over HTTP, the probe included
        "b": 1,
        "third": 1,
    }
    assert used["b"].completion_tokens == 8
    assert used["b"].service_units == 3  # the prompt beside the first step, and the second step


def say_the_metrics(server: TritonServer) -> None:
    """Who comes first has a label, of tenants as many as may, and nobody's key is to be seen."""
    assert all(answered(server.grpc_url, key_of(name)) for name in CROWD)
    page = scrape_until(server, 8 + len(CROWD), "length")
    named = {"acme", "b", "third", *CROWD[: MOST_TENANTS - 3]}
    for sample in ("dgemma_service_units_total", "dgemma_queue_wait_seconds_count"):
        assert {labels["tenant"] for labels in page.labels(sample)} == {*named, OTHERS}
    units = [page.total("dgemma_service_units_total", tenant=t) for t in ("b", CROWD[0], OTHERS)]
    assert units == [3, 3, 9]
    assert page.total("dgemma_requests_total", outcome="unauthenticated") >= 4
    assert "dgk_" not in page.text


def says_the_http_front(url: str) -> None:
    """A key is the bearer's as in any of OpenAI's clients; readiness needs one of its own."""
    for probe, ready in ((ACME, 200), (None, 503)):
        settings = FrontSettings.load(
            triton_url=url, host="127.0.0.1", port=0, probe_api_key=probe, ready_timeout_s=20.0
        )
        with running_front(settings) as front, httpx2.Client(base_url=front.url) as http:
            assert http.get("/v1/health/ready").status_code == ready
            for key, status in ((ACME, 200), (THIRD, 401)):
                headers = {"Authorization": f"Bearer {key}"}
                body = {"prompt": "x", "seed": 1, "max_tokens": 8, "max_denoising_steps": 2}
                answered = http.post("/v1/completions", json=body, headers=headers)
                assert answered.status_code == status, answered.text


def says_plain_tritonclient(url: str) -> None:
    """What anybody's client does: the key as metadata of the stream. It wins over a parameter."""
    tensors = inputs(text_input="x", sampling=json.dumps(ANSWER))
    with triton.InferenceServerClient(url) as client:
        for headers, parameters, allowed in (
            ({"authorization": f"Bearer {ACME}"}, {"authorization": "Bearer nobody"}, True),
            ({"authorization": "Bearer nobody"}, {"authorization": f"Bearer {ACME}"}, False),
        ):
            opened = Stream(client)
            client.start_stream(opened.accept, headers=headers, stream_timeout=PATIENCE_S)
            client.async_stream_infer(
                "diffusion_gemma", tensors, parameters=parameters, enable_empty_final_response=True
            )
            opened.open += 1
            if allowed:
                while not opened.answer().final:
                    pass
            else:
                with pytest.raises(InferenceServerException, match=r"\[UNAUTHENTICATED\]"):
                    opened.answer()
            client.stop_stream()
