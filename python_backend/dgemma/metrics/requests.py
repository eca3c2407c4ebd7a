"""What blocks and ends of requests add to the metrics.

Knows the arithmetic; knows neither threads nor Triton. Nothing that a client sends becomes a label:
outcomes are a fixed set, tenants come from the operator's file and are bounded in number.
"""

from __future__ import annotations

from dgemma.errors import DgemmaError
from dgemma.metrics.exporter import Exporter
from dgemma.metrics.families import OUTCOMES
from dgemma.request import Request
from dgemma.scheduler.events import Block, Finished, Usage

MOST_TENANTS = 50  # with a label of their own; each has a dozen series
OTHER = "other"  # no tenant may have this name

_OUTCOMES = {
    "INVALID_ARGUMENT": "invalid",
    "UNAUTHENTICATED": "unauthenticated",
    "RESOURCE_EXHAUSTED": "rejected",
    "DEADLINE_EXCEEDED": "late",
    "UNAVAILABLE": "unavailable",
}
_COMPLETE = ("stop", "length")


class RequestMetrics:
    """For one thread, which tells it everything in the order in which it happened."""

    def __init__(self, exporter: Exporter, model: str, most_tenants: int = MOST_TENANTS) -> None:
        self._to, self._model, self._most_tenants = exporter, model, most_tenants
        self._tenants: set[str] = set()
        self._silent: set[str] = set()  # ids of requests that have blocks and no text yet
        for outcome in OUTCOMES:
            exporter.add("dgemma_requests_total", 0, outcome)
        for name in ("prompt_tokens", "generation_tokens", "request_success", "request_failure"):
            exporter.add(f"{name}_total", 0, model)

    def block(self, request: Request, block: Block) -> None:
        """A block has ended."""
        tokens, first = len(block.delta.token_ids), block.block_index == 0
        if first:
            self._to.observe("dgemma_time_to_first_block_seconds", block.age_s)
        if tokens and (first or request.id in self._silent):
            self._to.observe("time_to_first_token_seconds", block.age_s, self._model)
            self._silent.discard(request.id)
        elif first:
            self._silent.add(request.id)
        if block.denoising_steps:
            self._to.observe("dgemma_block_latency_seconds", block.took_s)
            self._to.observe("dgemma_denoising_steps", block.denoising_steps)
        self._to.add("generation_tokens_total", tokens, self._model)

    def end(self, request: Request, end: Finished) -> None:
        """A request has ended, whether it ever ran or not."""
        usage, tenant = end.usage, self._tenant(request.tenant.name)
        self._silent.discard(request.id)
        self._count(end.finish_reason if end.error is None else outcome_of(end.error))
        if usage.passes or usage.completion_tokens:
            self._to.add("prompt_tokens_total", usage.prompt_tokens, self._model)
        self._to.add("dgemma_cap_hits_total", usage.cap_hits)
        self._to.add("dgemma_committed_tokens_total", usage.committed_tokens)
        self._to.add("dgemma_useful_tokens_total", usage.completion_tokens)
        wasted = usage.committed_tokens - usage.completion_tokens
        self._to.add("dgemma_wasted_tokens_total", wasted)
        self._to.add("dgemma_service_units_total", usage.service_units, tenant)
        if usage.total_ms:  # otherwise it was refused at once
            self._to.observe("dgemma_queue_wait_seconds", usage.queue_ms / 1e3, tenant)
        if end.finish_reason in _COMPLETE:
            self._complete(usage)

    def refused(self, error: DgemmaError) -> None:
        """A request has ended before it became one."""
        self._count(outcome_of(error))

    def _count(self, outcome: str) -> None:
        self._to.add("dgemma_requests_total", 1, outcome)
        name = "request_success_total" if outcome in _COMPLETE else "request_failure_total"
        self._to.add(name, 1, self._model)

    def _complete(self, usage: Usage) -> None:
        self._to.observe("e2e_request_latency_seconds", usage.total_ms / 1e3, self._model)
        self._to.observe("request_prompt_tokens", usage.prompt_tokens, self._model)
        self._to.observe("request_generation_tokens", usage.completion_tokens, self._model)
        if usage.completion_tokens:
            seconds = (usage.total_ms - usage.queue_ms) / 1e3 / usage.completion_tokens
            self._to.observe("time_per_output_token_seconds", seconds, self._model)

    def _tenant(self, name: str) -> str:
        """The first that ask keep their names as long as the process lives."""
        if name not in self._tenants:
            if len(self._tenants) >= self._most_tenants:
                return OTHER
            self._tenants.add(name)
        return name


def outcome_of(error: DgemmaError) -> str:
    return _OUTCOMES.get(error.grpc_code, "failed")
