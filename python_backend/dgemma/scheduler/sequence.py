"""One request on its way through a slot: what is encoded, what is being denoised, what it cost.

Knows the phases of a request and turns them into rows; knows nothing of other requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dgemma.answer import Delta
from dgemma.engine.base import NO_PARTNER, Row
from dgemma.errors import DgemmaError, EngineFailure
from dgemma.request import FREE, Request, StreamMode
from dgemma.scheduler.bill import Bill
from dgemma.scheduler.events import Block, Draft, Finished, Sink
from dgemma.scheduler.pace import Pace
from dgemma.scheduler.prefix_cache import KeyChain, PrefixCache
from dgemma.scheduler.tenancy import PROBE, Tenant
from dgemma.tail.tail import Canvas, Denoiser


class Transcript(Protocol):
    """Takes committed blocks of token ids and says when the answer is complete."""

    def push(self, block: Tokens[int]) -> Delta: ...

    @property
    def completion_tokens(self) -> int: ...


class Sequence:
    """A request; while it runs it has a slot, a place in the KV pool."""

    def __init__(
        self, request: Request, answer: Transcript, sink: Sink, length: int, pace: Pace
    ) -> None:
        self.request, self.answer, self.sink, self.length = request, answer, sink, length
        self.pace, self.bill = pace, Bill(pace.clock)
        wait = request.deadline_s
        self.deadline = None if wait is None else self.bill.submitted + wait
        self.slot: int | None = None
        self.committed: list[list[int]] = []  # blocks
        self.pending = deque(self._known())
        self.prefill = len(self.pending)  # of these, those whose encoding no denoise step pays for
        self.encoded = 0
        self.chain = KeyChain(request, length)
        self.canvas: Canvas | None = None
        self.drafts = request.stream is StreamMode.DRAFT
        self.finished = False

    @property
    def rows_had(self) -> int:
        return self.bill.rows

    @property
    def tenant(self) -> Tenant:
        return self.request.tenant

    @property
    def priority(self) -> int:
        """What was asked for, otherwise what its tenant may have that is nearest to 0."""
        limits = self.tenant.limits
        nearest = min(max(0, limits.min_priority), limits.max_priority)
        return nearest if self.request.priority is None else self.request.priority

    @property
    def turn_rows(self) -> float:
        """Rows to expect up to the next block border."""
        return len(self.pending) + self.pace.steps(self.request.sampling.max_denoising_steps)

    @property
    def context_rows(self) -> int:
        return -(-len(self.request.prompt) // self.length) + len(self.committed)

    def least_passes(self, known: int) -> float:
        """Passes up to the next block border at best, when `known` chunks need not be encoded.

        Two chunks may go together, and the last one goes with the canvas.
        """
        alone = max(0, len(self.pending) - known - 1)
        return alone / 2 + self.pace.steps(self.request.sampling.max_denoising_steps)

    def admit(self, slot: int, tail: Denoiser, cache: PrefixCache | None) -> None:
        """Begin in a slot, or go on in one, with what of the prompt has been encoded before."""
        self.slot = slot
        if cache is not None:
            self._restore(slot, cache)
        if self.bill.admitted is None:
            self.bill.admitted = self.bill.clock()
        if self.canvas is None:
            self._next_canvas(tail)

    def leave(self) -> None:
        """Give the slot up at a block border; all that is known is encoded again later.

        In the same chunks as before, so that not a bit of it will differ.
        """
        self.slot, self.encoded = None, 0
        self.pending = deque(self._known())
        self.prefill = len(self.pending)

    def rows(self, first: int, chunks: int = 1) -> list[Row]:
        """This pass's rows; `first` is the index the first of them gets in the pass.

        While several chunks wait to be encoded there are one or two encode rows; the last chunk and
        the canvas's denoise row go together. Each is the partner of the one before it.
        """
        canvas = self.canvas
        assert self.slot is not None and canvas is not None, "only admitted requests run"
        start, partner = self.encoded, NO_PARTNER
        if not self.pending:  # as in most passes
            return [Row(canvas.ids, self.slot, start, self.length, True, canvas.soft)]
        rows: list[Row] = []
        for chunk in islice(self.pending, chunks):
            ids = _padded(chunk, self.length)
            rows.append(Row(ids, self.slot, start, len(chunk), False, None, partner))
            start, partner = start + len(chunk), first + len(rows) - 1
        if len(self.pending) <= 1:
            row = Row(canvas.ids, self.slot, start, self.length, True, canvas.soft, partner)
            rows.append(row)
        return rows

    def encode(self, rows: Tokens[Row], cache: PrefixCache | None) -> None:
        """Count as known what these rows of a completed pass have encoded."""
        for row in rows:
            if row.denoise:
                break
            self.encoded = row.end
            self.pending.popleft()
            if self.prefill:
                self.prefill -= 1
                self.bill.chunks += 1
        if cache is not None:
            cache.keep(self.chain, rows[0].slot, self.encoded)

    def denoised(self, tail: Denoiser) -> bool:
        """React to a denoise step of the canvas: report, and commit where it is done.

        Whether the request stands at a block border now, with another canvas to come.
        """
        canvas = self.canvas
        assert canvas is not None and canvas.argmax is not None
        if self.drafts:
            ids, states = canvas.argmax.tolist(), canvas.states.tolist()
            self.sink(Draft(canvas.block, canvas.step, tuple(ids), tuple(states)))
        if not canvas.is_done(self.request.sampling):
            return False
        self.bill.cap_hits += not canvas.converged
        if self.tenant is not PROBE:  # its canvases say nothing of those to come
            self.pace.denoised(canvas.step)
        self._commit(canvas.argmax.tolist(), canvas.step, canvas.mean_entropy)
        self._next_canvas(tail)
        return not self.finished

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Send the last event. The owner frees the slot."""
        self.finished = True
        if error is not None and not isinstance(error, DgemmaError):
            error = EngineFailure(f"the engine failed: {error}")
        usage = self.bill.usage(self.request, self.answer.completion_tokens)
        self.sink(Finished(reason, usage, error))

    def _next_canvas(self, tail: Denoiser) -> None:
        """Begin the next canvas that has anything to denoise; pinned ones are committed as is."""
        while not self.finished:
            pinned = self._pinned()
            if pinned is None or bool((pinned == FREE).any()):
                self.canvas = tail.begin(len(self.committed), self.request.sampling, pinned)
                return
            self._commit(pinned.tolist(), 0, 0.0)

    def _pinned(self) -> Tensor | None:
        template = self.request.pinned
        part = template[len(self.committed) * self.length :][: self.length] if template else ()
        return torch.tensor(part) if part else None

    def _commit(self, ids: list[int], steps: int, mean_entropy: float) -> None:
        delta = self.answer.push(ids)
        self.bill.denoising_steps.append(steps)
        self.bill.mean_entropy.append(mean_entropy)
        self.bill.committed_tokens += self.length
        self.sink(Block(len(self.committed), delta, steps, *self.bill.block()))
        if delta.finish_reason is not None:
            self.finish(delta.finish_reason)
            return
        self.committed.append(ids)
        self.chain.extend(ids)
        self.pending.append(ids)
        self.prefill += steps == 0

    def _restore(self, slot: int, cache: PrefixCache) -> None:
        blocks = cache.restore(self.chain, slot, len(self.request.prompt) // self.length)
        for _ in range(blocks):
            self.pending.popleft()
        self.prefill -= blocks
        self.encoded = blocks * self.length
        if self.bill.cached_tokens is None:
            self.bill.cached_tokens = self.encoded

    def _known(self) -> Iterator[list[int]]:
        """The tokens before the canvas in the chunks in which they are encoded."""
        prompt = self.request.prompt
        for start in range(0, len(prompt), self.length):
            yield list(prompt[start : start + self.length])
        yield from self.committed


def _padded(tokens: list[int], length: int) -> Tensor:
    ids = np.zeros(length, np.int64)  # torch takes ten times as long to read a list
    ids[: len(tokens)] = tokens
    return torch.from_numpy(ids)
