"""One request on its way through a slot: what is encoded, what is being denoised, what it cost.

Knows the phases of a request and turns them into rows; knows nothing of other requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dgemma.answer import Delta
from dgemma.engine.base import Row
from dgemma.errors import DgemmaError, EngineFailure
from dgemma.request import FREE, Request, StreamMode
from dgemma.scheduler.events import Block, Draft, Finished, Sink, Usage
from dgemma.tail.tail import Canvas, Tail


class Transcript(Protocol):
    """Takes committed blocks of token ids and says when the answer is complete."""

    def push(self, block: Tokens[int]) -> Delta: ...

    @property
    def completion_tokens(self) -> int: ...


@dataclass
class Bill:
    """Counts and clocks of one request."""

    submitted: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_block: float | None = None
    passes: int = 0
    cap_hits: int = 0
    committed_tokens: int = 0
    denoising_steps: list[int] = field(default_factory=list)
    mean_entropy: list[float] = field(default_factory=list)

    def usage(self, request: Request, completion_tokens: int) -> Usage:
        ended = time.monotonic()

        def since(moment: float | None) -> float:
            return round(((ended if moment is None else moment) - self.submitted) * 1e3, 3)

        return Usage(
            prompt_tokens=len(request.prompt),
            completion_tokens=completion_tokens,
            committed_tokens=self.committed_tokens,
            denoising_steps=tuple(self.denoising_steps),
            cap_hits=self.cap_hits,
            mean_entropy=tuple(round(value, 6) for value in self.mean_entropy),
            passes=self.passes,
            seed=request.sampling.seed,
            queue_ms=since(self.admitted),
            first_block_ms=since(self.first_block),
            total_ms=since(ended),
        )


class Sequence:
    """A request with its place in the KV pool once it has one."""

    def __init__(self, request: Request, answer: Transcript, sink: Sink, length: int) -> None:
        self.request, self.answer, self.sink, self.length = request, answer, sink, length
        self.slot = -1
        self.pending: list[int] = list(request.prompt)  # known tokens that are not encoded yet
        self.encoded = 0
        self.canvas: Canvas | None = None
        self.blocks = 0
        self.finished = False
        self.bill = Bill()

    def admit(self, slot: int, tail: Tail) -> None:
        self.slot = slot
        self.bill.admitted = time.monotonic()
        self._next_canvas(tail)

    def rows(self, first: int) -> list[Row]:
        """This pass's rows; `first` is the index the first of them gets in the pass.

        While more than a row of tokens waits to be encoded there is one encode row; the last of
        them and the canvas's denoise row go together as partners.
        """
        rows = []
        chunk = self.pending[: self.length]
        if chunk:
            rows.append(
                Row(_padded(chunk, self.length), self.slot, self.encoded, len(chunk), False)
            )
        if len(self.pending) <= self.length:
            assert self.canvas is not None, "an admitted request has a canvas"
            start = self.encoded + len(chunk)
            partner = first if chunk else -1
            canvas = self.canvas
            rows.append(Row(canvas.ids, self.slot, start, self.length, True, canvas.soft, partner))
        return rows

    def encoded_rows(self, rows: Tokens[Row]) -> None:
        """Account for a completed pass with these rows of this request."""
        self.bill.passes += 1
        for row in rows:
            if not row.denoise:
                self.encoded = row.end
                del self.pending[: row.valid]

    def denoised(self, tail: Tail) -> None:
        """React to a denoise step of the canvas: report, and commit where it is done."""
        canvas, sampling = self.canvas, self.request.sampling
        assert canvas is not None and canvas.argmax is not None
        if self.request.stream is StreamMode.DRAFT:
            ids, states = canvas.argmax.tolist(), canvas.states.tolist()
            self.sink(Draft(canvas.block, canvas.step, tuple(ids), tuple(states)))
        if canvas.converged or canvas.step >= sampling.max_denoising_steps:
            self.bill.cap_hits += not canvas.converged
            self._commit(canvas.argmax.tolist(), canvas.step, canvas.mean_entropy)
            if not self.finished:
                self._next_canvas(tail)

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Send the last event. The owner frees the slot."""
        self.finished = True
        if error is not None and not isinstance(error, DgemmaError):
            error = EngineFailure(f"the engine failed: {error}")
        usage = self.bill.usage(self.request, self.answer.completion_tokens)
        self.sink(Finished(reason, usage, error))

    def _next_canvas(self, tail: Tail) -> None:
        """Begin the next canvas that has anything to denoise; pinned ones are committed as is."""
        while not self.finished:
            pinned = self._pinned()
            if pinned is None or bool((pinned == FREE).any()):
                self.canvas = tail.begin(self.blocks, self.request.sampling, pinned)
                return
            self._commit(pinned.tolist(), 0, 0.0)

    def _pinned(self) -> Tensor | None:
        template = self.request.pinned
        part = template[self.blocks * self.length :][: self.length] if template else ()
        return torch.tensor(part) if part else None

    def _commit(self, ids: list[int], steps: int, mean_entropy: float) -> None:
        delta = self.answer.push(ids)
        self.bill.denoising_steps.append(steps)
        self.bill.mean_entropy.append(mean_entropy)
        self.bill.committed_tokens += self.length
        if self.bill.first_block is None:
            self.bill.first_block = time.monotonic()
        self.sink(Block(self.blocks, delta, steps))
        self.blocks += 1
        if delta.finish_reason is not None:
            self.finish(delta.finish_reason)
        else:
            self.pending += ids


def _padded(tokens: list[int], length: int) -> Tensor:
    return torch.tensor(tokens + [0] * (length - len(tokens)))
