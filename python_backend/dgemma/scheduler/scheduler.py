"""First come, first served: as many requests at a time as the engine has slots.

Knows slots and the order of a pass (admit, run, retire); knows nothing of Triton, threads or
fairness. One thread calls everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dgemma.engine.base import Engine, Row
from dgemma.request import Request
from dgemma.scheduler.events import Sink
from dgemma.scheduler.sequence import Sequence, Transcript
from dgemma.tail.tail import Tail


@dataclass(frozen=True)
class SchedulerStats:
    """A snapshot for metrics and logs."""

    slots: int
    running: int
    waiting: int
    passes: int


class Scheduler:
    """Runs requests in order of arrival; late ones join at the next pass."""

    def __init__(
        self, engine: Engine, tail: Tail, answer_factory: Callable[[Request], Transcript]
    ) -> None:
        self.engine, self.tail, self.answer_factory = engine, tail, answer_factory
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        # Each running request may need a commit row and a denoise row in the same pass.
        slots = min(engine.capacity.slots, max(1, engine.capacity.rows // 2))
        self.free_slots = list(reversed(range(slots)))
        self.slots, self.passes = slots, 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(self.slots, len(self.running), len(self.waiting), self.passes)

    def submit(self, request: Request, sink: Sink) -> None:
        answer = self.answer_factory(request)
        length = self.engine.geometry.canvas_length
        self.waiting.append(Sequence(request, answer, sink, length))

    def cancel(self, request_id: str) -> None:
        """End a request wherever it is; unknown ids have already ended."""
        for sequence in [*self.waiting, *self.running]:
            if sequence.request.id == request_id and not sequence.finished:
                sequence.finish("cancelled")
        self._retire()

    def step(self) -> bool:
        """Admit, run one pass, retire. False when there was nothing to do."""
        self._admit()
        if not self.running:
            return False
        rows: list[Row] = []
        shares: list[list[Row]] = []
        for sequence in self.running:
            shares.append(sequence.rows(first=len(rows)))
            rows += shares[-1]
        try:
            self._run(rows, shares)
        except Exception as error:
            # Nothing of the pass was kept, but who is at fault is unknown: its requests end.
            for sequence in self.running:
                sequence.finish("error", error)
            self._retire()
            raise
        self._retire()
        return True

    def _admit(self) -> None:
        while self.waiting and self.free_slots:
            sequence = self.waiting.popleft()
            sequence.admit(self.free_slots.pop(), self.tail)
            self.running.append(sequence)
            self._retire()  # an answer that is pinned throughout is complete without a pass

    def _run(self, rows: list[Row], shares: list[list[Row]]) -> None:
        hidden = self.engine.forward(rows)
        self.passes += 1
        denoising = [index for index, row in enumerate(rows) if row.denoise]
        owners = [s for s, share in zip(self.running, shares, strict=True) if share[-1].denoise]
        if denoising:
            states = [(s.canvas, s.request.sampling) for s in owners if s.canvas is not None]
            # Most passes only denoise; a selection would copy.
            chosen = hidden if len(denoising) == len(rows) else hidden[denoising]
            self.tail.step(chosen, states)
        for sequence, share in zip(self.running, shares, strict=True):
            sequence.encoded_rows(share)
        for sequence in owners:
            sequence.denoised(self.tail)

    def _retire(self) -> None:
        for sequence in [s for s in self.running if s.finished]:
            self.running.remove(sequence)
            self.free_slots.append(sequence.slot)
        if any(s.finished for s in self.waiting):
            self.waiting = deque(s for s in self.waiting if not s.finished)
