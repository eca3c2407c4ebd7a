"""Time to the first block of long prompts on simulated platforms, and what neighbours feel of it.

Knows how to run one long prompt among streams that decode, in virtual time; what was promised is
`tests.accept.simulated`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

from dgemma.request import Request
from dgemma.scheduler.events import Block, Event, Finished
from dgemma.simulated.convergence import CAP
from tests.dgemma.scheduler.dice import asked
from tests.dgemma.simulated_stage import L, SimulatedStage

NEIGHBOURS = 16
WARM_PASSES = 200  # until the streams are out of step
ENDLESS = 32768  # tokens, more than a stream says while the longest prompt is read
ROOM = 1024  # tokens of the answer to the long prompt
STEPS = 23  # of its first canvas, the published median


@dataclass
class Stream:
    """One neighbour's blocks, by their index: when each ended, and by which pass."""

    ended_s: list[float] = field(default_factory=list)
    ended_pass: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def latency_s(self, block: int) -> float:
        return self.ended_s[block] - self.ended_s[block - 1]

    def between(self, began_s: float, ended_s: float) -> Iterator[int]:
        """Blocks that were under way in that time, all of whose time is known."""
        for block in range(1, len(self.ended_s)):
            if self.ended_s[block] > began_s and self.ended_s[block - 1] < ended_s:
                yield block

    def extra_passes(self, block: int) -> int:
        """Passes from the end of the block before that were no step of this one."""
        return self.ended_pass[block] - self.ended_pass[block - 1] - self.steps[block]


@dataclass
class Course:
    """A run of so many passes."""

    streams: list[Stream]
    pass_s: list[float]
    began_s: float  # when the long prompt came, or would have
    first_block_s: float | None = None  # from then on


@dataclass(frozen=True)
class Reading:
    """One line of the table; seconds of blocks are means over those that the prompt fell into."""

    platform: str
    prompt: int
    alone_s: float
    beside_s: float
    block_s: float  # a neighbour's block, beside the prompt
    quiet_block_s: float  # the same block without it
    crowded_block_s: float  # and beside one more stream that decodes in its place
    extra_passes: int  # that were no step of a block, at most
    pass_s: float  # the longest, beside the prompt
    quiet_pass_s: float  # and without it

    @property
    def step_grew_s(self) -> float:
        """By which a neighbour's step was held up at most."""
        return self.pass_s - self.quiet_pass_s

    @property
    def block_grew(self) -> float:
        """By which a neighbour's block was longer, in passes."""
        return (self.block_s - self.quiet_block_s) / self.quiet_pass_s

    @property
    def crowd_grew(self) -> float:
        return (self.crowded_block_s - self.quiet_block_s) / self.quiet_pass_s


def read(platform: str, prompt: int) -> Reading:
    """A prompt of so many tokens, alone and beside streams that decode."""
    alone, beside = (course(platform, prompt, streams) for streams in (0, NEIGHBOURS))
    assert alone.first_block_s is not None and beside.first_block_s is not None
    passes = len(beside.pass_s)
    quiet = course(platform, None, NEIGHBOURS, passes)
    crowded = course(platform, None, NEIGHBOURS + 1, passes)
    blocks = [
        (stream, block)
        for stream in range(NEIGHBOURS)
        for block in beside.streams[stream].between(
            beside.began_s, beside.began_s + beside.first_block_s
        )
        if all(block < len(other.streams[stream].ended_s) for other in (quiet, crowded))
    ]

    def block_s(run: Course) -> float:
        return mean(run.streams[stream].latency_s(block) for stream, block in blocks)

    return Reading(
        *(platform, prompt, alone.first_block_s, beside.first_block_s),
        *(block_s(run) for run in (beside, quiet, crowded)),
        extra_passes=max(beside.streams[stream].extra_passes(block) for stream, block in blocks),
        pass_s=max(beside.pass_s[WARM_PASSES:]),
        quiet_pass_s=max(quiet.pass_s[WARM_PASSES:]),
    )


def course(platform: str, prompt: int | None, streams: int, passes: int | None = None) -> Course:
    """Streams warm up, then the prompt comes; until its first block, or for so many passes."""
    stage = SimulatedStage(
        streams + 1, platform=platform, context=max(ENDLESS + L, (prompt or 0) + ROOM)
    )
    run = Course([Stream() for _ in range(streams)], [], 0.0)

    def hear(number: int, event: Event) -> None:
        assert not isinstance(event, Finished), "an answer was too short"
        if isinstance(event, Block):
            stream = run.streams[number]
            stream.ended_s.append(stage.time())
            stream.ended_pass.append(stage.scheduler.passes)
            stream.steps.append(event.denoising_steps)

    def first(event: Event) -> None:
        if isinstance(event, Block) and run.first_block_s is None:
            run.first_block_s = stage.time() - run.began_s

    for number in range(streams):
        # Of the stage's requests every fifth seed's stops early.
        wanted = _request(str(number), L, ENDLESS, seed=5 * number + 1)
        stage.scheduler.submit(wanted, partial(hear, number))
    while len(run.pass_s) < (passes or 10**9) and run.first_block_s is None:
        if len(run.pass_s) == (WARM_PASSES if streams else 0):
            run.began_s = stage.time()
            if prompt is not None:
                stage.scheduler.submit(
                    _request(
                        *("long", prompt, ROOM),
                        seed=1,
                        max_denoising_steps=STEPS,
                        confidence_threshold=0.0,
                    ),
                    first,
                )
        began = stage.time()
        stage.scheduler.step()
        run.pass_s.append(stage.time() - began)
    return run


def _request(name: str, prompt: int, new_tokens: int, **more: Any) -> Request:
    values = {"max_denoising_steps": CAP, "ignore_eos": True, **more}
    return asked(name, prompt=(1,) * prompt, max_new_tokens=new_tokens, **values)
