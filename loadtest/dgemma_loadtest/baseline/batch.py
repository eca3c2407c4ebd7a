"""Continuous batching in real time: passes that take what the model of a machine says.

Knows sequences and passes; knows nothing of HTTP. A pass begins when the one before should have
ended, so that our own lateness does not add up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from dgemma_loadtest.modelled.phases import PROMPT_TOKENS
from dgemma_loadtest.modelled.roofline import Machine

BEHIND_S = 0.05  # more than so much behind, the clock is set anew: the host was busy


@dataclass
class Sequence:
    """A request; every item of `out` is how many tokens it has by now."""

    prompt: int
    wanted: int
    read: int = 0  # tokens of the prompt
    said: int = 0
    out: asyncio.Queue[int] = field(default_factory=asyncio.Queue)

    @property
    def context(self) -> int:
        return self.read + self.said


class Batch:
    """One device. `slots` sequences share passes, the others wait in the order of their arrival."""

    def __init__(self, machine: Machine, slots: int) -> None:
        self.machine, self._slots = machine, slots
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._some = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batch:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._loop is not None, "entered"
        self._loop.cancel()
        with suppress(asyncio.CancelledError):
            await self._loop

    async def tokens(self, prompt: int, wanted: int) -> AsyncIterator[int]:
        """The number of tokens so far, whenever there is another; leaving it ends the request."""
        sequence = Sequence(prompt, wanted)
        self._waiting.append(sequence)
        self._some.set()
        try:
            while sequence.said < wanted or not sequence.out.empty():
                yield await sequence.out.get()
        finally:
            for held in (self._waiting, self._active):
                with suppress(ValueError):
                    held.remove(sequence)

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            while self._waiting and len(self._active) < self._slots:
                self._active.append(self._waiting.popleft())
            if not self._active:
                self._some.clear()
                await self._some.wait()
                due = time.monotonic()
                continue
            chunks, taking = self._pass(list(self._active))
            due = max(due + taking, time.monotonic() - BEHIND_S)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._said(chunks)

    def _pass(self, batch: list[Sequence]) -> tuple[list[tuple[Sequence, int]], float]:
        """What each sequence reads of its prompt, 0 for a token instead; and how long all takes."""
        room, chunks = PROMPT_TOKENS, []
        for sequence in batch:
            chunk = min(sequence.prompt - sequence.read, room)
            if chunk or sequence.read == sequence.prompt:
                chunks.append((sequence, chunk))
                room -= chunk
        decoding = sum(s.read + chunk == s.prompt for s, chunk in chunks)
        context = sum(sequence.context for sequence in batch) / len(batch)
        prompts = PROMPT_TOKENS - room
        return chunks, self.machine.autoregressive_s(decoding, prompts, context)

    def _said(self, chunks: list[tuple[Sequence, int]]) -> None:
        for sequence, chunk in chunks:
            sequence.read += chunk
            if sequence.read == sequence.prompt:
                sequence.said += 1
                sequence.out.put_nowait(sequence.said)
                if sequence.said >= sequence.wanted:
                    with suppress(ValueError):
                        self._active.remove(sequence)
