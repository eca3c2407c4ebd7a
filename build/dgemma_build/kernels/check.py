"""Compiles kernels in processes of their own and says what is wrong with each.

Knows how work is spread and what a kernel may take; imports neither triton nor kernels, as whoever
asks may have set TRITON_INTERPRET, under which nothing that is imported compiles.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import TYPE_CHECKING

from dgemma.engine.kernels.chip import Chip
from dgemma.geometry import Geometry
from dgemma_build.parts import Progress

if TYPE_CHECKING:
    from dgemma.engine.kernels.compiled import Resources
    from dgemma.engine.kernels.variant import Variant

# A function of a module: processes find it by name. `compiled.all_variants` is one.
Source = Callable[[Geometry, Chip], "Iterable[Variant]"]

TENSOR_COLUMNS = 512  # of tensor memory, on chips that have one


@dataclass(frozen=True)
class Task:
    """One kernel for one chip."""

    source: Source
    geometry: Geometry
    capability: int
    name: str


@dataclass(frozen=True)
class Checked:
    """What came of a task: resources, or why there are none."""

    capability: int
    kernel: str
    resources: Resources | None = None
    error: str = ""
    hot: bool = True
    reason: str = ""  # that the variant gives for its spills

    @property
    def problem(self) -> str:
        """Why the kernel must not be shipped as it is; empty where it may."""
        r, most = self.resources, Chip.of(self.capability).shared_bytes
        if r is None:
            return self.error
        if r.shared_bytes > most:
            return f"takes {r.shared_bytes} bytes of shared memory, the chip has {most}"
        if r.tensor_columns > TENSOR_COLUMNS:
            return f"takes {r.tensor_columns} columns of tensor memory of {TENSOR_COLUMNS}"
        if r.spills and self.hot and not self.reason:
            spilled = f"{r.spill_store_bytes} bytes a thread out and {r.spill_load_bytes} back in"
            return f"spills {spilled}, without a reason"
        return ""


def tasks(source: Source, geometry: Geometry, capabilities: Iterable[int]) -> list[Task]:
    """ValueError where two kernels of a chip have the same name."""
    found = [
        Task(source, geometry, capability, variant.name)
        for capability in capabilities
        for variant in source(geometry, Chip.of(capability))
    ]
    if len(set(found)) < len(found):
        twice = next(task for task in found if found.count(task) > 1)
        raise ValueError(f"{twice.capability}: two kernels are named {twice.name!r}")
    return found


def check(wanted: Sequence[Task], tell: Progress = lambda what, done, total: None) -> list[Checked]:
    """The outcome of each task, in order; as many processes as this one may use cores."""
    found: dict[Task, Checked] = {}

    def keep(outcomes: Iterator[tuple[Task, Checked]]) -> None:
        for task, outcome in outcomes:
            found[task] = outcome
            tell("kernels", len(found), len(wanted))

    tell("kernels", 0, len(wanted))
    keep(_together(wanted))
    keep(_in_turn([task for task in wanted if task not in found]))
    return [found[task] for task in wanted]


def _together(wanted: Sequence[Task]) -> Iterator[tuple[Task, Checked]]:
    """Leaves tasks out where a compiler took its process down, and all others with it."""
    if not wanted:
        return
    cores = len(os.sched_getaffinity(0))
    with _processes(min(cores, len(wanted))) as pool:
        futures = {pool.submit(_compile, task): task for task in wanted}
        try:
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _in_turn(wanted: Sequence[Task]) -> Iterator[tuple[Task, Checked]]:
    """One after another, so that it is known which of them ends its process."""
    left = list(wanted)
    while left:
        with _processes(1) as pool:
            while left:
                task = left.pop(0)
                try:
                    yield task, pool.submit(_compile, task).result()
                except BrokenProcessPool:
                    error = "the compiler ended its process; what it said is above"
                    yield task, Checked(task.capability, task.name, error=error)
                    break


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, get_context("spawn"), _begin)


def _begin() -> None:
    """In each process, before anything imports triton."""
    os.environ.pop("TRITON_INTERPRET", None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends these


def _compile(task: Task) -> Checked:
    from dgemma.engine.kernels.compiled import KernelDoesNotCompile, compile_variant

    variant = _variants(task.source, task.geometry, task.capability)[task.name]
    try:
        resources, error = compile_variant(variant, Chip.of(task.capability)), ""
    except KernelDoesNotCompile as failure:
        resources, error = None, f"does not compile: {failure.why}"
    return Checked(task.capability, task.name, resources, error, variant.hot, variant.reason)


@lru_cache
def _variants(source: Source, geometry: Geometry, capability: int) -> dict[str, Variant]:
    return {variant.name: variant for variant in source(geometry, Chip.of(capability))}
