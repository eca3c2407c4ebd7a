"""Requests and events made by hand, for tests that need no tokenizer and no network."""

from __future__ import annotations

from typing import Any

from dgemma.answer import Delta
from dgemma.errors import DgemmaError
from dgemma.request import Request, StreamMode
from dgemma.sampling import Sampling
from dgemma.scheduler.events import Block, Draft, Finished, Usage

SAMPLING = Sampling(
    max_new_tokens=8,
    max_denoising_steps=4,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    stability_threshold=1,
    confidence_threshold=0.005,
    seed=11,
    stop=(),
    ignore_eos=False,
    return_token_ids=True,
)
USAGE = Usage(
    prompt_tokens=3,
    completion_tokens=4,
    committed_tokens=8,
    denoising_steps=(2, 3),
    cap_hits=1,
    mean_entropy=(0.25, 0.5),
    passes=6,
    seed=11,
    queue_ms=0.5,
    first_block_ms=2.0,
    total_ms=9.0,
    service_units=8,
)


def request(
    request_id: str = "r", stream: StreamMode = StreamMode.BLOCK, sampling: Sampling = SAMPLING
) -> Request:
    return Request(request_id, (2, 70, 71), sampling, stream, None)


def draft(block_index: int = 0, step: int = 1) -> Draft:
    return Draft(block_index, step, (7, 8, 9), (0, 1, 2))


def block(text: str, *token_ids: int, block_index: int = 0, steps: int = 2) -> Block:
    return Block(block_index, Delta(text, token_ids, None), steps)


def finished(reason: str = "stop", error: DgemmaError | None = None) -> Finished:
    return Finished(reason, USAGE, error)


def annotate(ids: Any, states: Any) -> tuple[str, list[int]]:
    """A letter for each token."""
    return "".join(chr(ord("a") + token_id) for token_id in ids), list(states)
