"""The slow checks of the GPU engine that need no GPU: `make accept-7`.

Knows what is promised of kernels; executes them in Triton's interpreter, compiles them for every
chip, and holds the torch engine's tokens against the onnx engine's. Nothing here is a speed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

# Before kernels are imported: interpret them here, and not where processes that compile them read
# this as they start.
if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
else:
    os.environ.pop("TRITON_INTERPRET", None)

import torch
import typer
from rich.console import Console
from torch import Tensor

from dgemma.assemble import Parts
from dgemma.bench.agreement import agreement
from dgemma.bench.random_weights import random_weights
from dgemma.engine import reference
from dgemma.engine.device import HostDevice
from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.engine.kernels.compiled import all_variants
from dgemma.engine.kernels.operations import KernelOperations
from dgemma.engine.kernels.routed import Routed
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import Geometry
from dgemma.precision import policy_of
from dgemma.sampling import Sampling
from dgemma_build.kernels.check import Checked, check, tasks
from tests.accept.decisions import Decisions, Divergence, RecordingTail, divergence
from tests.accept.main_job import Line, table
from tests.bench.__main__ import WIDTH
from tests.dgemma.engine.kernels.interpreter import exact
from tests.dgemma.engine.torch_engines import parts_of, torch_parts
from tests.identity import arrival, run

MATRIX = {90: "wgmma", 100: "tcgen05", 103: "tcgen05"}  # elsewhere mma.sync
NEAR, TIE = 1e-4, 1e-5  # of hidden states; of logits, entropies and routers' scores
PRECISIONS = ("bf16", "fp8", "int4", "nvfp4")


def compiled() -> Iterator[Line]:
    """Every kernel that the engine launches for the 26B network, for every chip."""
    found = check(tasks(all_variants, named_geometry(DEFAULT), CAPABILITIES))
    for capability in CAPABILITIES:
        mine = [one for one in found if one.capability == capability]
        yield Line(
            f"compute capability {capability}: kernels",
            _summary(mine),
            "all compile, fit, and do not spill without a reason",
            not any(one.problem for one in mine),
        )


def _summary(found: list[Checked]) -> str:
    known = [one.resources for one in found if one.resources is not None]
    wrong = [f"{one.kernel}: {one.problem}" for one in found if one.problem]
    registers, shared = max(r.registers for r in known), max(r.shared_bytes for r in known)
    units = sorted({r.matrix for r in known} - {"none"})
    spilling = sum(bool(r.spills) for r in known)
    facts = f"{len(known)} of {len(found)}, up to {registers} registers and {shared >> 10} KiB"
    return "; ".join([f"{facts}, {'/'.join(units)}, {spilling} spill", *wrong])


def interpreted() -> Iterator[Line]:
    """Passes of a network of the real widths, two layers of it, by kernels."""
    geometry = widths()
    for precision in PRECISIONS:
        weights = random_weights(geometry, policy_of(precision), HostDevice())
        with exact():
            kernels = KernelOperations(Chip.of(90))
            found = list(agreement(weights, HostDevice(), kernels, lambda kind: None, context=64))
        worst = max(found, key=lambda p: p.max_error / p.limit)
        yield Line(
            f"{precision}: {len(found)} operations of whole passes, real widths",
            f"{worst.kind} {worst.max_error:.1e}",
            f"<= {worst.limit:g} from plain torch",
            all(p.passed for p in found),
        )


def widths() -> Geometry:
    """The 26B network with one layer of each kind, and few experts, tokens and places."""
    real = named_geometry(DEFAULT)
    kinds = tuple(next(x for x in real.layers if x.is_full == full) for full in (False, True))
    return replace(
        real,
        layers=kinds,
        num_experts=2,
        intermediate_size=704,
        top_k_experts=2,
        vocab_size=512,
        canvas_length=16,
        sliding_window=40,
    )


def tokens(engine: Path, checkpoint: Path, mixes: int) -> Iterator[Line]:
    """The demo checkpoint by both engines, in the same random mixes of requests."""
    theirs, ours = parts_of(engine, checkpoint), torch_parts(engine, checkpoint)
    length = ours.scheduler.engine.geometry.canvas_length
    seen: list[Decisions] = []
    for parts in (theirs, ours):
        seen.append({})
        parts.scheduler.tail = RecordingTail.around(parts.scheduler.tail, seen[-1], {})
    same = total = 0
    ties: list[float] = []
    for index in range(mixes):
        rng = random.Random(f"tokens/{index}")
        crowd = [arrival(rng, length, may_leave=False) for _ in range(6)]
        with routers_watched() as leads:
            found = run(ours, crowd, f"{index}")
        wanted = run(theirs, crowd, f"{index}")
        for asked, one, other in zip(crowd, found, wanted, strict=True):
            total += 1
            same += one == other
            if one != other:
                sampling = ours.parser.parse(asked.raw, "again").sampling
                parted = _parted(ours, sampling, *seen)
                # Hidden states that are near decide by a margin; others came from other experts.
                ties.append(parted.margin if parted.apart <= NEAR else min(leads))
        for decisions in seen:
            decisions.clear()
    what = "requests with the onnx engine's tokens and steps, torch engine on the host"
    yield Line(what, f"{same} of {total}", "all, but for ties", same >= 0.99 * total)
    at = ", ".join(f"{tie:.1e}" for tie in ties) or "none"
    promised = f"<= {TIE:g}, decisions and experts alike"
    yield Line("margins of the ties", at, promised, max(ties, default=0.0) <= TIE)


@contextmanager
def routers_watched() -> Iterator[list[float]]:
    """The least lead of a chosen expert over one that was not, of every layer and pass."""
    leads: list[float] = []

    def route(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> Routed:
        ranked = scores.float().sort(-1, descending=True).values
        leads.append(float((ranked[:, top_k - 1] - ranked[:, top_k]).min()))
        return routed(scores, top_k, per_expert_scale)

    routed = reference.route
    with patch.object(reference, "route", route):
        yield leads


def _parted(parts: Parts, sampling: Sampling, theirs: Decisions, ours: Decisions) -> Divergence:
    """The first step of a request at which both decided differently."""
    steps = [m for m in theirs if m.seed == sampling.seed]
    steps.sort(key=lambda m: (m.block, m.step))
    first = next(m for m in steps if not theirs[m].agrees(ours[m]))
    return divergence(parts.scheduler.tail, first, sampling, theirs[first], ours[first])


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    mixes: Annotated[int, typer.Option(help="Random mixes of requests.", min=1)] = 100,
) -> None:
    """Print the table; a quarter of an hour. The exit code is 1 where a promise does not hold."""
    torch.set_num_threads(1)
    progress, lines = Console(stderr=True), []
    for part in (compiled(), tokens(engine.resolve(), checkpoint.resolve(), mixes), interpreted()):
        for line in part:
            progress.print(f"{line.what}: {line.seen}", highlight=False, markup=False)
            lines.append(line)
    Console(width=WIDTH).print(table(lines, "the GPU engine, without a GPU"))
    raise typer.Exit(int(any(line.holds is False for line in lines)))


if __name__ == "__main__":
    typer.run(main)
