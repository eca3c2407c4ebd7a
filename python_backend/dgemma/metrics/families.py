"""Every metric of the service: its name, type, labels and meaning.

Knows what there is, for the exporter and for `python_backend/metrics.md`; counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

OUTCOMES = (
    *("stop", "length", "cancelled"),
    *("invalid", "unauthenticated", "rejected", "late", "unavailable", "failed"),
)

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_WAIT_S = (0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
_TOKEN_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
_STEPS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 128, 1024)


@dataclass(frozen=True)
class Family:
    """One metric; `help` is its meaning in words."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds, of a histogram


def _nim(name: str, kind: Kind, help: str, buckets: tuple[float, ...] = ()) -> Family:
    """NIM's metrics are told apart by the model's name."""
    return Family(name, kind, help, ("model_name",), buckets)


NIM = (
    _nim("num_requests_running", "gauge", "Requests that have a slot"),
    _nim("num_requests_waiting", "gauge", "Requests that wait for a slot"),
    _nim("num_request_max", "gauge", "Slots: requests that can run at the same time"),
    _nim("gpu_cache_usage_perc", "gauge", "Share of the K/V pool that slots in use hold: 0 to 1"),
    _nim("prompt_tokens_total", "counter", "Prompt tokens of requests that have run and ended"),
    _nim("generation_tokens_total", "counter", "Tokens of answers, counted block by block"),
    _nim(
        "time_to_first_token_seconds",
        "histogram",
        "From submission to the first block with text to send",
        _LATENCY_S,
    ),
    _nim(
        "time_per_output_token_seconds",
        "histogram",
        "Of each complete answer, the time since it got a slot over its tokens",
        _TOKEN_S,
    ),
    _nim(
        "e2e_request_latency_seconds",
        "histogram",
        "From submission to the end of a complete answer",
        _LATENCY_S,
    ),
    _nim("request_prompt_tokens", "histogram", "Prompt tokens of a complete answer", _TOKENS),
    _nim("request_generation_tokens", "histogram", "Tokens of a complete answer", _TOKENS),
    _nim("request_success_total", "counter", "Requests that ended with stop or length"),
    _nim("request_failure_total", "counter", "Requests that ended in any other way"),
)

DGEMMA = (
    Family("dgemma_requests_total", "counter", "Requests by how they ended", ("outcome",)),
    Family(
        "dgemma_time_to_first_block_seconds",
        "histogram",
        "From submission to the first finished block",
        buckets=_LATENCY_S,
    ),
    Family(
        "dgemma_block_latency_seconds",
        "histogram",
        "Of a denoised block, the time since the one before it, or since the request got a slot",
        buckets=_LATENCY_S,
    ),
    Family(
        "dgemma_denoising_steps",
        "histogram",
        "Denoise steps of a block; blocks that are pinned throughout have none and do not count",
        buckets=_STEPS,
    ),
    Family(
        "dgemma_cap_hits_total",
        "counter",
        "Blocks that ran max_denoising_steps without converging",
    ),
    Family("dgemma_committed_tokens_total", "counter", "Tokens of finished blocks"),
    Family("dgemma_useful_tokens_total", "counter", "Of these, the tokens of answers"),
    Family(
        "dgemma_wasted_tokens_total",
        "counter",
        "Of these, the others: behind the end of an answer or its limit",
    ),
    Family(
        "dgemma_passes_total",
        "counter",
        "Passes, by how many rows they had: 1, 2, 3-4, 5-8, 9-16 and so on",
        ("rows",),
    ),
    Family("dgemma_rows_total", "counter", "Rows of passes, by mode: encode or denoise", ("mode",)),
    Family(
        "dgemma_pass_seconds_total",
        "counter",
        "Time in passes, tail included; its rate is the share of time in which the engine works",
    ),
    Family(
        "dgemma_reruns_total", "counter", "Passes run again because an expert had too many tokens"
    ),
    Family(
        "dgemma_preemptions_total",
        "counter",
        "Slots given up at a block border for another request",
    ),
    Family(
        "dgemma_prefix_cache_lookups_total",
        "counter",
        "Complete blocks of prompts that were looked up when a request got a slot",
    ),
    Family("dgemma_prefix_cache_hits_total", "counter", "Of these, those that were there"),
    Family("dgemma_prefix_cache_evictions_total", "counter", "Blocks forgotten for want of room"),
    Family("dgemma_prefix_cache_bytes", "gauge", "K/V that the prefix cache holds"),
    Family(
        "dgemma_queue_wait_seconds",
        "histogram",
        "From submission to a slot, or to the end of a request that got none; without those that "
        "were refused at once",
        ("tenant",),
        _WAIT_S,
    ),
    Family(
        "dgemma_service_units_total", "counter", "Rows of passes, by who is charged", ("tenant",)
    ),
    Family(
        "dgemma_profile_info",
        "gauge",
        "1; the profile that is served. fell_back: true where wanted, a better one, could not be",
        ("profile", "id", "revision", "fell_back", "wanted"),
    ),
    Family(
        "dgemma_engine_info",
        "gauge",
        "1; what computes. verification: measured on a device, or never verified. simulated: "
        "false, or the platform whose time is imitated, and then no figure here was measured",
        ("profile", "target", "precision", "verification", "simulated"),
    ),
    Family(
        "dgemma_simulated_device_seconds",
        "gauge",
        "Seconds of the simulated device: busy, idle, starved (idle with work)",
        ("simulated", "state"),
    ),
)

FAMILIES = NIM + DGEMMA
