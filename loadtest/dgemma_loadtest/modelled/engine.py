"""A service in virtual time: closed loops of tenants' users over slots, and records of it.

Knows queues, slots and passes; how long a pass takes is the machine's. It is a sketch of a
continuous batch, not the service: `run --simulate` runs the service itself, in real time.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dgemma_loadtest.modelled import phases
from dgemma_loadtest.modelled.phases import Phase
from dgemma_loadtest.modelled.roofline import Machine
from dgemma_loadtest.modelled.steady import Workload
from dgemma_loadtest.modelled.steps import CAP, Steps
from dgemma_loadtest.platforms import Kind
from dgemma_loadtest.records import Chunk, Outcome, Record, Usage
from dgemma_loadtest.run_file import StageWindow

CHARACTERS = 4  # of a token
WARMUP = 0.25  # of the time, in which queues fill
LONGEST = 8  # answers are cut at so many times their mean
Policy = Literal["fair", "fcfs"]


@dataclass(frozen=True)
class Loop:
    """Users of a tenant who ask again as soon as they have their answer."""

    tenant: str
    users: int
    weight: float = 1.0
    load: Workload = field(default_factory=Workload)


@dataclass
class Job:
    """A request on its way."""

    loop: Loop
    user: int
    due_s: float
    answer: int
    steps: tuple[int, ...]
    phases: deque[Phase]
    left: int = 0  # passes of the first phase
    began_s: float | None = None
    units: float = 0.0
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def phase(self) -> Phase:
        return self.phases[0]


@dataclass
class Engine:
    """One closed loop's worth of requests on one machine."""

    machine: Machine
    kind: Kind
    slots: int
    steps: Steps
    loops: Sequence[Loop]
    policy: Policy = "fair"
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._now = 0.0
        self._waiting: dict[str, deque[Job]] = {loop.tenant: deque() for loop in self.loops}
        self._active: list[Job] = []
        self._had = {loop.tenant: 0.0 for loop in self.loops}  # service by weight
        self._ended: list[tuple[Job, float]] = []

    def run(
        self, answers: int, stage: str, warmup: float = WARMUP
    ) -> tuple[list[Record], StageWindow]:
        """Until so many answers are complete; the first `warmup` of the time does not count."""
        for loop in self.loops:
            for user in range(loop.users):
                self._arrive(loop, user)
        while len(self._ended) < answers:
            self._admit()
            self._passes()
        window = StageWindow(
            *(stage, 0.0, warmup * self._now, self._now, self._now),
            ended_by="requests",
            offered={loop.tenant: float(loop.users) for loop in self.loops},
        )
        open_ = [*self._active, *itertools.chain.from_iterable(self._waiting.values())]
        records = [self._record(job, stage, at, window) for job, at in self._ended]
        records += [self._record(job, stage, None, window) for job in open_]
        return sorted(records, key=lambda record: record.scheduled_s), window

    def _arrive(self, loop: Loop, user: int) -> None:
        mean, network = loop.load.answer_tokens, self.machine.network
        answer = math.ceil(min(LONGEST * mean, max(1.0, self._rng.exponential(mean))))
        canvases = math.ceil(answer / network.canvas_tokens)
        steps = tuple(map(int, self.steps.draw(self._rng, canvases)))
        prompt = loop.load.prompt_tokens
        found = (
            phases.diffusion(prompt, answer, steps, network.canvas_tokens)
            if self.kind == "diffusion"
            else phases.autoregressive(prompt, answer)
        )
        if not self._waiting[loop.tenant]:  # who comes back does not collect what it did not ask
            busy = [self._had[job.loop.tenant] for job in self._active]
            self._had[loop.tenant] = max(self._had[loop.tenant], min(busy, default=0.0))
        job = Job(loop, user, self._now, answer, steps, deque(found))
        job.left = job.phase.passes
        self._waiting[loop.tenant].append(job)

    def _admit(self) -> None:
        while len(self._active) < self.slots and (tenant := self._next()) is not None:
            job = self._waiting[tenant].popleft()
            job.began_s = self._now if job.began_s is None else job.began_s
            self._active.append(job)

    def _next(self) -> str | None:
        """Who has had least for its weight; or who came first."""
        waiting = [tenant for tenant, jobs in self._waiting.items() if jobs]
        rank: dict[Policy, Callable[[str], float]] = {
            "fair": lambda tenant: self._had[tenant],
            "fcfs": lambda tenant: self._waiting[tenant][0].due_s,
        }
        return min(waiting, key=rank[self.policy], default=None)

    def _passes(self) -> None:
        """As many passes as nothing changes in."""
        count, took = min(job.left for job in self._active), self._pass_s()
        self._now += count * took
        for job in list(self._active):
            units = count * job.phase.units
            job.units += units
            self._had[job.loop.tenant] += units / job.loop.weight
            job.left -= count
            if job.left == 0:
                self._phase_ends(job)

    def _phase_ends(self, job: Job) -> None:
        phase = job.phases.popleft()
        if phase.ends_block:
            self._say(job, phase)
        if not job.phases:
            self._active.remove(job)
            self._ended.append((job, self._now))
            self._arrive(job.loop, job.user)
            return
        job.left = job.phase.passes
        if phase.ends_block and self.policy == "fair" and self._owes(job):
            self._active.remove(job)
            self._waiting[job.loop.tenant].appendleft(job)

    def _owes(self, job: Job) -> bool:
        """Whether somebody who waits is owed more than a block of this request."""
        tenant = self._next()
        if tenant is None or tenant == job.loop.tenant:
            return False
        block = CAP / job.loop.weight
        return self._had[tenant] + block < self._had[job.loop.tenant]

    def _say(self, job: Job, phase: Phase) -> None:
        characters = CHARACTERS * phase.useful
        if self.kind == "diffusion":
            block = len(job.chunks)
            job.chunks.append(Chunk(self._now, "block", characters, block, job.steps[block]))
        else:
            job.chunks.append(Chunk(self._now, "text", characters))

    def _pass_s(self) -> float:
        load = [job.phase for job in self._active]
        context = sum(phase.context for phase in load) / len(load)
        if self.kind == "diffusion":
            rows, denoising = (
                sum(phase.rows for phase in load),
                sum(phase.denoising for phase in load),
            )
            return self.machine.diffusion_s(rows, denoising, context)
        sequences = sum(phase.sequences for phase in load)
        prompts = sum(phase.prompt_tokens for phase in load)
        return self.machine.autoregressive_s(sequences, prompts, context)

    def _record(self, job: Job, stage: str, at: float | None, window: StageWindow) -> Record:
        """Of a job that is not complete, a request that was cut off."""
        loop, done = job.loop, at is not None
        return Record(
            id=f"{stage}-{loop.tenant}-{job.user}-{job.due_s:.6f}",
            stage=stage,
            load=loop.tenant,
            tenant=loop.tenant,
            weight=loop.weight,
            user=job.user,
            prompt_class="modelled",
            prompt="",
            task="generate",
            scheduled_s=job.due_s,
            started_s=None if job.began_s is None and not done else job.due_s,
            ended_s=self._now if at is None else at,
            outcome=Outcome.OK if done else Outcome.UNFINISHED,
            chunks=tuple(job.chunks),
            warmup=job.due_s < window.measured_from_s,
            usage=self._usage(job) if done else None,
        )

    def _usage(self, job: Job) -> Usage:
        canvas, diffusion = self.machine.network.canvas_tokens, self.kind == "diffusion"
        committed = len(job.steps) * canvas if diffusion else job.answer
        steps = job.steps if diffusion else ()
        return Usage(
            prompt_tokens=job.loop.load.prompt_tokens,
            useful_tokens=job.answer,
            committed_tokens=committed,
            steps=steps,
            cap_hits=sum(count == CAP for count in steps) if diffusion else None,
            service_units=round(job.units),
            queue_s=(job.began_s or job.due_s) - job.due_s,
            simulated=f"{self.machine.name}, a model in virtual time",
        )
