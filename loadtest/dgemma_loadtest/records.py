"""One request as it was measured: a line of `records.jsonl`.

Knows the fields and their units; knows nothing of how they are measured or summed up. All times are
seconds since the run's `epoch_unix`, by one monotonic clock a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

SCHEMA = 1


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"  # answered to its end
    REJECTED = "rejected"  # no room or quota: 429, RESOURCE_EXHAUSTED
    CANCELLED = "cancelled"  # by us, because the scenario says so
    LATE = "late"  # out of time: DEADLINE_EXCEEDED, 408, 504, or our own timeout
    FAILED = "failed"  # any other error
    UNFINISHED = "unfinished"  # cut off when its stage or the run ended; it took this long at least
    UNSENT = "unsent"  # due while `max_open` requests of its load were open already


class Chunk(NamedTuple):
    """One message of an answer; in JSON an array in this order."""

    at_s: float
    kind: Literal["block", "text"]  # block: one canvas; text: whatever another server sends at once
    characters: int
    block: int | None = None  # which canvas, from 0
    steps: int | None = None  # denoise steps run on it


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server says of a request; None where it does not say."""

    prompt_tokens: int | None = None
    useful_tokens: int | None = None  # of the answer, as the client gets it
    committed_tokens: int | None = None  # of finished canvases; the others are waste
    steps: tuple[int, ...] = ()  # denoise steps of each block
    cap_hits: int | None = None  # blocks that ran all steps allowed without converging
    passes: int | None = None  # of the network, this request's rows among them
    prefill_chunks: int | None = None
    cached_tokens: int | None = None
    service_units: int | None = None  # rows of passes, what a tenant is charged
    queue_s: float | None = None  # from submission to a slot
    first_block_s: float | None = None  # from submission, by the server's clock
    total_s: float | None = None
    simulated: str | None = None  # the platform whose time is imitated: nothing was computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request. Latencies are counted from `scheduled_s`, when the request was due.

    In JSON, fields that are None are left out.
    """

    id: str
    stage: str
    load: str  # the entry of the stage that it belongs to
    tenant: str
    user: int  # of a closed loop: whose it is; of an open loop: the arrival's number
    prompt_class: str
    prompt: str  # its name within the class
    task: Literal["generate", "infill"]
    max_new_tokens: int | None = None
    scheduled_s: float
    started_s: float | None = None  # when it was handed to the transport; None if it never was
    ended_s: float
    outcome: Outcome
    chunks: tuple[Chunk, ...] = ()
    weight: float = 1.0  # of the tenant
    warmup: bool = False  # due before the stage's measured part
    code: str | None = None  # of an end that is not ok: gRPC's name, or HTTP_503
    message: str | None = None
    retry_after_s: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    lag_s: float = 0.0  # started - scheduled: what the generator itself was late
    schema_version: int = SCHEMA

    @property
    def first_s(self) -> float | None:
        """When the first chunk came."""
        return self.chunks[0].at_s if self.chunks else None
