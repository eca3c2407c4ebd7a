"""Many requests on one engine: rows of all that have a slot share every pass.

Knows slots and the order of a pass (admit, run, retire); who goes first is the queue's business.
Knows nothing of Triton or threads. One thread calls everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from dgemma.engine.base import Engine, Row
from dgemma.request import Request
from dgemma.scheduler.admission import Admission, late
from dgemma.scheduler.deadlines import Deadlines
from dgemma.scheduler.events import Sink
from dgemma.scheduler.fair_queue import FairQueue
from dgemma.scheduler.line import ArrivalQueue, Queue
from dgemma.scheduler.options import Options
from dgemma.scheduler.pace import Pace
from dgemma.scheduler.prefill import aboard
from dgemma.scheduler.prefix_cache import PrefixCache
from dgemma.scheduler.sequence import Sequence, Transcript
from dgemma.scheduler.stats import CacheStats, SchedulerStats
from dgemma.tail.tail import Denoiser

Shares = list[tuple[Sequence, list[Row]]]


class Scheduler:
    """Runs requests in the queue's order; late ones join at the next pass."""

    def __init__(
        self,
        engine: Engine,
        tail: Denoiser,
        answer_factory: Callable[[Request], Transcript],
        options: Options | None = None,
        pace: Pace | None = None,
    ) -> None:
        options = options or Options()
        self.engine, self.tail, self.answer_factory = engine, tail, answer_factory
        self.pace = pace or Pace()
        self.queue: Queue[Sequence] = FairQueue() if options.fair else ArrivalQueue()
        self.deadlines = Deadlines()
        size = options.prefix_cache_bytes
        self.cache = PrefixCache(engine, size) if size else None
        self.admission = Admission(options.max_queued, self.queue, self.pace, self.cache)
        self.open: dict[str, Sequence] = {}
        self.running: list[Sequence] = []
        # Each running request may need a commit row and a denoise row in the same pass.
        slots = min(engine.capacity.slots, max(1, engine.capacity.rows // 2))
        self.free_slots = list(reversed(range(slots)))
        self.slots = slots
        self.preemptions = self.encode_rows = self.denoise_rows = 0
        self.passes_by_rows: Counter[int] = Counter()
        self.prefill_rows = options.prefill_rows
        # A row sees one partner; and a ring must hold both until the first is kept.
        geometry = engine.geometry
        self.chunks_together = 2 if geometry.sliding_window >= 2 * geometry.canvas_length else 1

    @property
    def busy(self) -> bool:
        return bool(self.open)

    @property
    def passes(self) -> int:
        return sum(self.passes_by_rows.values())

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            slots=self.slots,
            running=len(self.running),
            waiting=len(self.queue),
            preemptions=self.preemptions,
            passes_by_rows=dict(self.passes_by_rows),
            encode_rows=self.encode_rows,
            denoise_rows=self.denoise_rows,
            pass_s=self.pace.total_s,
            reruns=self.engine.reruns,
            cache=CacheStats() if self.cache is None else self.cache.stats,
        )

    def submit(self, request: Request, sink: Sink) -> None:
        """Let a request wait for a slot. Raises what `Admission.admit` does; nobody hears of it."""
        answer = self.answer_factory(request)
        length = self.engine.geometry.canvas_length
        sequence = Sequence(request, answer, sink, length, self.pace)
        self.admission.admit(sequence, len(self.free_slots))
        self.open[request.id] = sequence
        self.deadlines.watch(sequence)
        self.queue.push(sequence)

    def cancel(self, request_id: str) -> None:
        """End a request wherever it is; unknown ids have already ended."""
        if sequence := self.open.get(request_id):
            sequence.finish("cancelled")
            self._retire(sequence)

    def step(self) -> bool:
        """Admit, run one pass, retire. False when there was nothing to do."""
        for sequence in self.deadlines.late(self.pace.clock()):
            self._drop(sequence, "it has passed")
        self._admit()
        if not self.running:
            return False
        shares = self._shares()
        began = self.pace.clock()
        try:
            at_border = self._run(shares)
        except Exception as error:
            # Nothing of the pass was kept, but who is at fault is unknown: its requests end.
            for sequence, _ in shares:
                if not sequence.finished:
                    sequence.finish("error", error)
                self._retire(sequence)
            raise
        self.pace.passed(self.pace.clock() - began)
        for sequence in [s for s, _ in shares if s.finished]:
            self._retire(sequence)
        self._pass_slots_on(at_border)
        return True

    def _admit(self) -> None:
        while self.free_slots and (sequence := self.queue.pop()):
            sequence.admit(self.free_slots.pop(), self.tail, self.cache)
            self.running.append(sequence)
            if sequence.finished:  # an answer that is pinned throughout needs no pass
                self._retire(sequence)
            elif not self.admission.in_time(sequence):
                self._drop(sequence, "it could not be met any more when a slot was free")

    def _shares(self) -> Shares:
        """The requests of the next pass, each with its rows."""
        shares: Shares = []
        first = 0
        for sequence, chunks in aboard(
            self.running, self.queue, self.prefill_rows, self.chunks_together
        ):
            shares.append((sequence, sequence.rows(first, chunks)))
            first += len(shares[-1][1])
        return shares

    def _run(self, shares: Shares) -> list[Sequence]:
        """Run a pass; the requests that it has brought to a block border."""
        rows = [row for _, share in shares for row in share]
        denoising = [index for index, row in enumerate(rows) if row.denoise]
        owners = [sequence for sequence, share in shares if share[-1].denoise]
        states = [(s.canvas, s.request.sampling) for s in owners if s.canvas is not None]
        encoding = [(sequence, share) for sequence, share in shares if not share[0].denoise]
        # Whatever comes behind a pass runs on cold caches; all of the above is ahead of it.
        hidden = self.engine.forward(rows)
        self.passes_by_rows[len(rows)] += 1
        self.denoise_rows += len(denoising)
        self.encode_rows += len(rows) - len(denoising)
        if denoising:
            # Most passes only denoise; a selection would copy.
            chosen = hidden if len(denoising) == len(rows) else hidden[denoising]
            self.tail.step(chosen, states)
        for sequence, share in shares:
            sequence.bill.passes += 1
            sequence.bill.rows += len(share)
        for sequence, share in encoding:
            sequence.encode(share, self.cache)
        return [
            sequence
            for sequence, (canvas, sampling) in zip(owners, states, strict=True)
            if (sequence.drafts or canvas.is_done(sampling)) and sequence.denoised(self.tail)
        ]

    def _pass_slots_on(self, at_border: list[Sequence]) -> None:
        """Where no slot is free, have those at a border make room for who is owed more."""
        self._admit()
        for sequence in at_border:
            if self.queue.border(sequence):
                self._free_slot(sequence)
                sequence.leave()
                self.preemptions += 1
                self._admit()

    def _drop(self, sequence: Sequence, why: str) -> None:
        sequence.finish("error", late(sequence, why))
        self._retire(sequence)

    def _retire(self, sequence: Sequence) -> None:
        """Let go of all that an ended request holds."""
        del self.open[sequence.request.id]
        self.admission.settle(sequence)
        self.deadlines.forget(sequence)
        if sequence.slot is None:
            self.queue.remove(sequence)
        else:
            self.queue.end(sequence)
            self._free_slot(sequence)

    def _free_slot(self, sequence: Sequence) -> None:
        assert sequence.slot is not None, "a running request has a slot"
        self.running.remove(sequence)
        self.free_slots.append(sequence.slot)
