"""What the plans of the real network cost to build, and whether they are what was promised.

Knows what is promised and how to watch a build's processes; each build is `dgemma-build engine`, as
a user runs it, once from nothing and once with the graph in the cache. What was measured is kept
under `var/accept` by target and precision, and is not measured again until the builder changes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dgemma.geometries import DEFAULT, named_geometry
from dgemma.manifest import Manifest
from dgemma.precision import policy_of
from dgemma.roofline.sizes import Model
from dgemma.targets import load_targets
from dgemma_build import buffers, chain, compile, engine, gpu, in_turn, precision_pass, profiles
from dgemma_build.chain import period
from dgemma_build.definition import definition_digest
from dgemma_build.envelope import Envelope
from dgemma_build.gpu import LOG, prepare
from dgemma_build.graph_cache import cached_graph
from tests.accept.emission import PERIOD, network
from tests.stitching import operations

BUILDS = (
    *(("sm121", precision) for precision in ("fp8", "int4", "nvfp4")),
    *((target, precision) for target in ("sm120", "sm89") for precision in ("fp8", "int4")),
)
FROM_NOTHING, FROM_GRAPH = 150.0, 60.0  # seconds on two cores
MEMORY, PLAN_BYTES = 3e9, 100e6
SCRATCH = 1.02  # of what `estimate` counts
COMMAND = "from dgemma_build.cli import app; app()"
_BUILDERS = (buffers, chain, compile, engine, gpu, in_turn, precision_pass, profiles)


@dataclass(frozen=True)
class Measured:
    """One plan, built twice."""

    from_nothing: float  # seconds
    from_graph: float
    memory: int  # bytes, of all processes of a build together
    plan: int
    scratch: int
    counted: int  # what `estimate` counts of it
    layers: int  # whose operations are those of a small network's layer

    def misses(self) -> list[str]:
        promises = {
            "from nothing": self.from_nothing <= FROM_NOTHING,
            "from the graph": self.from_graph <= FROM_GRAPH,
            "memory": self.memory <= MEMORY,
            "plan": self.plan <= PLAN_BYTES,
            "scratch": self.scratch <= SCRATCH * self.counted,
            "layers": self.layers == 5 * len(PERIOD),
        }
        return [what for what, holds in promises.items() if not holds]


def measure(target: str, precision: str, kept: Path) -> Iterator[str | Measured]:
    """What has been done so far, then the result; a small network's graph is kept in `kept`."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "plan"
        times, peaks = [], []
        for start in ("nothing", "the graph"):
            shutil.rmtree(out, ignore_errors=True)
            seconds, peak = _build(target, precision, out)
            times.append(seconds)
            peaks.append(peak)
            yield f"from {start}: {seconds:.1f} s, {peak / 1e9:.2f} GB"
        log = (out / LOG).read_text()
        manifest = Manifest.read(out)
        plan = sum((out / link.file).stat().st_size for link in manifest.links)
        (cached,) = (Path(scratch) / "graphs").glob("*.onnx")
        # Those of a period, each time that it is executed.
        layers = same_layers(onnx.load(cached), precision, kept)
        layers *= len(manifest.links[-1].first_layers)
    found = [int(size) for size in re.findall(r"Max Scratch Memory: (\d+)", log)]
    held = load_targets()[target]
    envelope = Envelope(held.max_rows // 2, held.max_rows, held.max_context)
    model = Model.of(named_geometry(DEFAULT), precision)
    counted = buffers.scratch(buffers.buffers(model, envelope))
    assert len(found) == len(manifest.links), "the compiler says how much memory a pass takes"
    yield Measured(times[0], times[1], max(peaks), plan, max(found), counted, layers)


def same_layers(graph: onnx.ModelProto, precision: str, kept: Path) -> int:
    """How many layers of the real graph have the operations of those of a small one, traced."""
    small = network(PERIOD, real=False)
    # Of whole groups of columns.
    small = replace(small, hidden_size=64, intermediate_size=64, moe_intermediate_size=64)
    traced = cached_graph(small, torch.bfloat16, kept)
    counts = []
    repeated, policy = period(named_geometry(DEFAULT), policy_of(precision))
    for model, geometry in ((graph, repeated), (traced, small)):
        prepare(model, geometry, policy)
        counts.append(operations(model, len(geometry.layers))[1:-1])
    return sum(mine == other for mine, other in zip(*counts, strict=True))


def _build(target: str, precision: str, out: Path) -> tuple[float, int]:
    """Seconds and peak memory of the command."""
    options = ["--geometry", DEFAULT, "--target", target, "--precision", precision]
    arguments = [sys.executable, "-c", COMMAND, "engine", *options, "--out", str(out)]
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said)
        while process.poll() is None:
            peak = max(peak, sum(_resident(child) for child in _family(process.pid)))
            time.sleep(0.1)
        seconds = time.monotonic() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode(errors="replace"))
    return seconds, peak


def _family(process: int) -> Iterator[int]:
    """A process and all that came of it."""
    yield process
    for child in _read(f"/proc/{process}/task/{process}/children").split():
        yield from _family(int(child))


def _resident(process: int) -> int:
    pages = _read(f"/proc/{process}/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _read(path: str) -> str:
    """Nothing where the process has ended."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _digest() -> str:
    text = definition_digest() + "".join(inspect.getsource(module) for module in _BUILDERS)
    return hashlib.sha256(text.encode()).hexdigest()


def main(
    only: Annotated[list[str], typer.Option("--only", help="As sm121-fp8; all without it.")] = [],  # noqa: B006 (typer copies it)
    kept: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("var/accept"),
) -> None:
    """Print the table; the exit code is 1 where a promise does not hold."""
    progress = Console(stderr=True)
    table = Table(title="plans of the real network", box=SIMPLE, title_justify="left")
    for heading in ("plan", "from nothing, s", "from graph, s", "memory, GB", "plan, MB"):
        table.add_column(heading)
    for heading in ("scratch, GB", "counted, GB", "layers", "missed"):
        table.add_column(heading)
    missed = False
    for target, precision in BUILDS:
        name = f"{target}-{precision}"
        if only and name not in only:
            continue
        result = _kept(kept / f"{name}.json")
        if result is None:
            for said in measure(target, precision, kept):
                if isinstance(said, Measured):
                    result = said
                else:
                    progress.print(f"{name} {said}", highlight=False)
            assert result is not None
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{name}.json").write_text(json.dumps({_digest(): asdict(result)}))
        misses = result.misses()
        table.add_row(
            name,
            f"{result.from_nothing:.1f}",
            f"{result.from_graph:.1f}",
            f"{result.memory / 1e9:.2f}",
            f"{result.plan / 1e6:.1f}",
            f"{result.scratch / 1e9:.2f}",
            f"{result.counted / 1e9:.2f}",
            str(result.layers),
            ", ".join(misses) or "nothing",
        )
        missed |= bool(misses)
    Console(width=120).print(table)
    raise typer.Exit(int(missed))


def _kept(path: Path) -> Measured | None:
    """What was measured with this very builder."""
    try:
        found = json.loads(path.read_text()).get(_digest())
    except (OSError, ValueError):
        return None
    return None if found is None else Measured(**found)


if __name__ == "__main__":
    typer.run(main)
