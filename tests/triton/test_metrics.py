"""The metrics of a real Triton server, read by Prometheus' own parser."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from dgemma.client import Client, RequestRejected
from dgemma.front import metrics as front
from dgemma.front.server import running as running_front
from dgemma.front.settings import FrontSettings
from dgemma.metrics.families import FAMILIES, Family
from dgemma.metrics.metrics import DEVICE
from dgemma.triton_server.server import TritonServer
from dgemma_build.demo.prompts import count_prompt
from tests.triton.scraped import Page, scrape_settled

MODEL = {"model_name": "diffusion_gemma"}
PROMPTS = [count_prompt(3), count_prompt(40), "x", count_prompt(3) + "y" * 200]
SETTINGS: dict[str, Any] = {"max_new_tokens": 200, "max_denoising_steps": 3, "ignore_eos": True}
EXPORTED = [family for family in FAMILIES if family.name != DEVICE]


@dataclass(frozen=True)
class Watched:
    """Some requests, and the metrics before and after them."""

    before: Page
    after: Page
    usages: list[dict[str, Any]]

    def grown(self, sample: str, **labels: str) -> float:
        return self.after.total(sample, **labels) - self.before.total(sample, **labels)

    def used(self, field: str) -> float:
        """The sum over the requests; of lists, of all that is in them."""
        values = [usage[field] for usage in self.usages]
        return sum(sum(value) if isinstance(value, list) else value for value in values)


@pytest.fixture(scope="module")
def watched(server: TritonServer) -> Watched:
    def ask(seed: int) -> dict[str, Any]:
        with Client(server.grpc_url) as client:
            prompt = PROMPTS[seed % len(PROMPTS)]
            return client.generate(prompt, seed=seed, **SETTINGS).usage

    ask(0)
    before = scrape_settled(server)
    with Client(server.grpc_url) as client, pytest.raises(RequestRejected):
        client.generate("x", max_new_tokens=0)
    with ThreadPoolExecutor(4) as clients:
        usages = list(clients.map(ask, range(1, 13)))
    return Watched(before, scrape_settled(server), usages)


def test_counters_are_the_sums_of_what_the_answers_said(watched: Watched) -> None:
    assert watched.used("cached_tokens") > 0 and watched.used("cap_hits") > 0
    for sample, field in (
        ("prompt_tokens_total", "prompt_tokens"),
        ("generation_tokens_total", "completion_tokens"),
        ("request_prompt_tokens_sum", "prompt_tokens"),
        ("request_generation_tokens_sum", "completion_tokens"),
        ("dgemma_useful_tokens_total", "completion_tokens"),
        ("dgemma_committed_tokens_total", "committed_tokens"),
        ("dgemma_cap_hits_total", "cap_hits"),
        ("dgemma_denoising_steps_sum", "denoising_steps"),
        ("dgemma_service_units_total", "service_units"),
        ("dgemma_rows_total", "service_units"),
    ):
        assert watched.grown(sample) == watched.used(field) > 0, sample
    wasted = watched.used("committed_tokens") - watched.used("completion_tokens")
    assert watched.grown("dgemma_wasted_tokens_total") == wasted > 0


def test_every_request_is_in_every_histogram_of_requests_once(watched: Watched) -> None:
    for name in (
        *("time_to_first_token_seconds", "time_per_output_token_seconds"),
        *("e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"),
        *("dgemma_time_to_first_block_seconds", "dgemma_queue_wait_seconds"),
    ):
        assert watched.grown(f"{name}_count") == len(watched.usages), name
        assert watched.grown(f"{name}_bucket", le="+Inf") == len(watched.usages), name
    blocks = sum(len(usage["denoising_steps"]) for usage in watched.usages)
    for name in ("dgemma_denoising_steps", "dgemma_block_latency_seconds"):
        assert watched.grown(f"{name}_count") == blocks
    assert watched.grown("dgemma_denoising_steps_bucket", le="4") == blocks  # of at most 3 steps


def test_seconds_are_those_that_the_answers_said(watched: Watched) -> None:
    for name, field in (
        ("e2e_request_latency_seconds", "total_ms"),
        ("time_to_first_token_seconds", "first_block_ms"),
        ("dgemma_time_to_first_block_seconds", "first_block_ms"),
        ("dgemma_queue_wait_seconds", "queue_ms"),
    ):
        # Answers are rounded to microseconds, and Triton prints six digits.
        seconds = watched.used(field) / 1e3
        assert watched.grown(f"{name}_sum") == pytest.approx(seconds, rel=1e-3, abs=1e-4), name
    # From its slot to its last block, a request is always in one block or another.
    in_blocks = (watched.used("total_ms") - watched.used("queue_ms")) / 1e3
    grown = watched.grown("dgemma_block_latency_seconds_sum")
    assert 0.9 * in_blocks < grown <= 1.001 * in_blocks
    busy = watched.grown("dgemma_pass_seconds_total")
    assert 0 < busy < in_blocks


def test_outcomes_are_counted(watched: Watched) -> None:
    for outcome, count in {"length": 12, "invalid": 1, "failed": 0}.items():
        assert watched.grown("dgemma_requests_total", outcome=outcome) == count
    assert watched.grown("request_success_total", **MODEL) == 12
    assert watched.grown("request_failure_total", **MODEL) == 1
    passes, rows = watched.grown("dgemma_passes_total"), watched.grown("dgemma_rows_total")
    assert passes <= rows <= 16 * passes
    assert watched.grown("dgemma_passes_total") <= watched.used("passes")


def test_what_is_known_of_the_prompts_is_a_hit(watched: Watched) -> None:
    canvas = watched.usages[0]["committed_tokens"] // len(watched.usages[0]["denoising_steps"])
    hits = watched.grown("dgemma_prefix_cache_hits_total")
    assert hits * canvas == watched.used("cached_tokens")
    wanted = sum(usage["prompt_tokens"] // canvas for usage in watched.usages)
    assert watched.grown("dgemma_prefix_cache_lookups_total") == wanted >= hits
    assert watched.after.total("dgemma_prefix_cache_bytes") > 0


def test_gauges_say_what_is_there(watched: Watched) -> None:
    assert watched.after.total("num_request_max", **MODEL) == 8
    assert 0 <= watched.after.total("num_requests_running", **MODEL) <= 8
    [info] = watched.after.labels("dgemma_engine_info")
    assert info == {
        "profile": "onnxruntime-cpu-fp32-tp1-pp1",
        "target": "cpu",
        "precision": "fp32",
        "verification": "never verified",
        "simulated": "false",
    }


def test_everything_is_exported_as_it_is_documented(watched: Watched) -> None:
    agrees(watched.after, EXPORTED)


def test_no_label_has_more_values_than_it_may(watched: Watched) -> None:
    assert [s["tenant"] for s in watched.after.labels("dgemma_service_units_total")] == ["default"]
    widths = [s["rows"] for s in watched.after.labels("dgemma_passes_total")]
    assert set(widths) <= {"1", "2", "3-4", "5-8", "9-16"}


def test_the_front_s_page_has_all_of_it_and_its_own(server: TritonServer) -> None:
    settings = FrontSettings.load(
        triton_url=server.grpc_url, triton_metrics_url=server.metrics_url, host="127.0.0.1", port=0
    )
    with running_front(settings) as running, httpx2.Client(base_url=running.url) as http:
        http.get("/v1/version")
        page = Page.of(http.get("/v1/metrics").text)
    agrees(page, [*EXPORTED, *front.FAMILIES])
    names = Counter(family.name for family in page.families)
    assert names.most_common(1)[0][1] == 1
    assert page.total("dgemma_http_triton_metrics_up") == 1
    assert list(page.labels("nv_inference_request_success_total"))  # so the parser calls it


def agrees(page: Page, families: list[Family]) -> None:
    """Names, types, meanings, labels and buckets of all that is ours."""
    found = {metric.name: metric for metric in page.families if not metric.name.startswith("nv_")}
    assert found.keys() == {family.name.removesuffix("_total") for family in families}
    for family in families:
        metric = found[family.name.removesuffix("_total")]
        assert (metric.type, metric.documentation) == (family.kind, family.help)
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(family.labels), sample
        bounds = {float(s.labels["le"]) for s in metric.samples if "le" in s.labels}
        assert bounds == {*family.buckets, float("inf")} if family.buckets else not bounds
