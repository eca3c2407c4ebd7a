"""What a request's owner hears: drafts, blocks and the end, in that order.

Knows the shape of the news; knows nothing of how it travels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from dgemma.answer import Delta
from dgemma.errors import DgemmaError


@dataclass(frozen=True)
class Draft:
    """A canvas after one denoise step; only requests that stream drafts get these."""

    block_index: int
    denoising_step: int  # steps run, from 1
    token_ids: tuple[int, ...]  # [L], the argmax canvas
    states: tuple[int, ...]  # [L], 0 provisional, 1 accepted, 2 pinned


@dataclass(frozen=True)
class Block:
    """A finished canvas, as the part of it that belongs to the answer.

    Blocks are equal whenever they came.
    """

    block_index: int
    delta: Delta
    denoising_steps: int
    took_s: float = field(default=0.0, compare=False)  # since the one before, or since the slot
    age_s: float = field(default=0.0, compare=False)  # of the request, since it was submitted


@dataclass(frozen=True)
class Usage:
    """What a request cost; times in milliseconds since it was submitted."""

    prompt_tokens: int
    completion_tokens: int
    committed_tokens: int
    denoising_steps: tuple[int, ...]  # per block
    cap_hits: int  # blocks that ran max_denoising_steps without converging
    mean_entropy: tuple[float, ...]  # per block, nats, at its last step
    passes: int
    seed: int
    queue_ms: float
    first_block_ms: float
    total_ms: float
    prefill_chunks: int = 0  # encode rows of the prompt, and of all that a pre-emption cost
    service_units: int = 0  # rows of all its passes: what the device has spent on it
    cached_tokens: int = 0  # of the prompt, which an earlier request has encoded
    simulated: str | None = None  # the platform, where nothing was computed

    def to_json(self) -> str:
        """Every field, but `simulated` only where something was."""
        values = asdict(self)
        if self.simulated is None:
            del values["simulated"]
        return json.dumps(values)


@dataclass(frozen=True)
class Finished:
    """The last event of every request."""

    finish_reason: str  # stop, length, cancelled or error
    usage: Usage
    error: DgemmaError | None = None


Event = Draft | Block | Finished
Sink = Callable[[Event], None]
