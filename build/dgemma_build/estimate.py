"""What a GPU can hold of a model and how fast it can be at most.

Knows memory envelopes and which floors and figures to show; knows neither the formulas of buffers
and floors nor how any of it is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.roofline.published import Comparison, compare, floor_ms
from dgemma.roofline.sizes import Model, PassBytes, pass_bytes
from dgemma.targets import Gpu, Target
from dgemma.targets.products import gpus_for
from dgemma_build.buffers import Buffer, buffers, total
from dgemma_build.envelope import Envelope

STEPS = (16, 20, 34, 48)
CONTEXT = 8192
# "18 GB" is what is published as the model's footprint on consumer cards; GB as disks count them.
CONSUMER_BAR = 18_000_000_000

STEP = 128  # tokens of context, in which the longest that fits is looked for


@dataclass(frozen=True)
class Question:
    """What is asked about every GPU."""

    geometry: Geometry
    context: int = CONTEXT
    rows: int | None = None  # of a pass; None: two, those of one slot
    steps: tuple[int, ...] = STEPS
    policy: str | None = None
    capacity: int | None = None

    def __post_init__(self) -> None:
        limit = self.geometry.max_position_embeddings
        if not 0 < self.context <= limit:
            raise ConfigurationError(
                f"context: got {self.context}; allowed: 1 to {limit}, the model's own limit"
            )
        if not self.steps or min(self.steps) < 1:
            raise ConfigurationError(f"steps: got {list(self.steps)}; allowed: numbers from 1 on")
        for name, value in (("rows", self.rows), ("capacity", self.capacity)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}: got {value}; allowed: numbers from 1 on")

    @property
    def envelope(self) -> Envelope:
        rows = self.rows or 2
        return Envelope(max(1, rows // 2), rows, self.context, self.capacity)


@dataclass(frozen=True)
class Estimate:
    """One GPU with one precision."""

    target: Target
    gpu: Gpu
    precision: str
    envelope: Envelope
    buffers: list[Buffer]
    used_bytes: int
    slots: int  # the most that fit at this context; 0: not even one
    supported: list[tuple[int, int]]  # rows x context
    moved: PassBytes
    floor_ms: float | None  # None: the bandwidth is not known
    gather_ms: float | None  # on top, while contexts are copied out of the pools
    tokens_per_s: dict[int, float]  # by denoise steps per canvas
    comparisons: list[Comparison]

    @property
    def fits(self) -> bool:
        return self.used_bytes <= self.gpu.usable_bytes


def estimates(
    targets: Sequence[Target],
    question: Question,
    precision: str | None = None,
    known: Sequence[Target] = (),
) -> list[Estimate]:
    """Every GPU of `targets` with every precision it serves, or with one.

    `known` have the products of a target that is for any GPU. Raises ConfigurationError where no
    target serves the precision.
    """
    wanted = [
        (target, name)
        for target in targets
        for name in target.precisions
        if precision in (None, name)
    ]
    if not wanted:
        served = "; ".join(f"{t.name} serves {', '.join(t.precisions)}" for t in targets)
        raise ConfigurationError(f"precision {precision!r} is not served: {served}")
    return [
        estimate(target, gpu, name, question)
        for target, name in wanted
        for gpu in (gpus_for(target, name, known) if target.on_gpu else (this_host(),))
    ]


def this_host() -> Gpu:
    """The machine itself as the device of target `cpu`; an eighth is left to everything else."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Gpu(name="this machine", memory_bytes=memory, unified=True, head_room_bytes=memory // 8)


def estimate(target: Target, gpu: Gpu, precision: str, question: Question) -> Estimate:
    """What `gpu` can hold and how fast it can be at most, as an engine of `target`."""
    model = Model.of(question.geometry, precision, question.policy, target.flavour)

    def fits(envelope: Envelope) -> bool:
        return total(buffers(model, envelope, target.flavour)) <= gpu.usable_bytes

    def of(slots: int, context: int) -> Envelope:
        return Envelope.of_slots(slots, context, question.capacity)

    most = range(1, target.max_rows // 2 + 1)
    longest = min(target.max_context, question.geometry.max_position_embeddings)

    def context_of(slots: int) -> int:
        steps = _largest(longest // STEP, lambda n: fits(of(slots, n * STEP)))
        return steps * STEP

    supported = [(2 * n, context) for n in _doubling(most) if (context := context_of(n))]
    held = buffers(model, question.envelope, target.flavour)
    moved = pass_bytes(model, question.envelope.slots, question.context)
    if target.flavour == "torch":  # its kernels read contexts where they are
        moved = replace(moved, gather=0)
    floor = floor_ms(moved, gpu)
    return Estimate(
        target,
        gpu,
        precision,
        question.envelope,
        held,
        total(held),
        _largest(most[-1], lambda n: fits(of(n, question.context))),
        _widest(supported),
        moved,
        floor,
        None if floor is None else floor * moved.gather / moved.floor,
        {} if floor is None else {n: speed(question, floor, n) for n in question.steps},
        [
            compare(model, gpu, published)
            for published in gpu.published
            if published.precision == precision
        ],
    )


def speed(question: Question, ms: float, steps: int) -> float:
    """Tokens per second of all slots, with passes of `ms`.

    A canvas costs as many passes as it has denoise steps: its commit shares a pass with the first
    step of the canvas after it.
    """
    return 1e3 * question.envelope.slots * question.geometry.canvas_length / (steps * ms)


@dataclass(frozen=True)
class ConsumerBar:
    """Whether int4 with one slot stays under the published footprint for consumer cards."""

    used_bytes: int
    limit_bytes: int
    capacity: int  # tokens of a pass that one expert may get, as counted
    tokens: int  # of a pass
    even: int  # tokens of an expert where the load is even

    @property
    def margin_bytes(self) -> int:
        """What is left; negative: what is missing."""
        return self.limit_bytes - self.used_bytes

    @property
    def holds(self) -> bool:
        return self.margin_bytes >= 0


def consumer_bar(geometry: Geometry, capacity: int | None = None) -> ConsumerBar:
    """One slot of 8192 tokens, all linear layers in int4; `capacity` as in `Envelope`."""
    model = Model.of(geometry, "int4", "all")

    tokens = Envelope.of_slots(1, CONTEXT).rows * geometry.canvas_length
    room = tokens if capacity is None else min(capacity, tokens)
    return ConsumerBar(
        total(buffers(model, Envelope.of_slots(1, CONTEXT, room))),
        CONSUMER_BAR,
        room,
        tokens,
        even=-(-tokens * geometry.top_k_experts // geometry.num_experts),
    )


def _doubling(counts: range) -> Iterator[int]:
    """1, 2, 4, … and the last."""
    count = 1
    while count < counts[-1]:
        yield count
        count *= 2
    yield counts[-1]


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n from 0 to `limit` that fits, where less always fits if more does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _widest(supported: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of equal contexts only the one with the most rows."""
    widest = {context: rows for rows, context in supported}  # the last, with most rows, is kept
    return [(rows, context) for context, rows in widest.items()]
