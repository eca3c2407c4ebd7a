"""Is the graph of the real network made quickly, and is it all that the full export is?

Knows what is promised of emission and the real network's sizes; times and memory are those of a
process of its own. `--proof` compares stitched graphs with full exports, which takes minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dgemma.geometry import FULL, Geometry, LayerGeometry, Rope
from dgemma.precision import policy_of
from dgemma_build.chain import period, take_apart
from dgemma_build.emit import emit, export
from dgemma_build.gpu import prepare
from dgemma_build.stitch import pattern, stitch
from tests.dgemma.model.tiny_weights import random_network
from tests.stitching import (
    kinds,
    mixed_pass,
    operations,
    outputs,
    run_chain,
    signature,
    weights_of,
)

SECONDS, GIGABYTES = 100.0, 3.0
PERIOD = "SSSSSF"
PROOF = (PERIOD * 2, "SFSFSF", "FFSSF", "SSS", "FFF")


def network(letters: str, *, real: bool) -> Geometry:
    """google/diffusiongemma-26B-A4B-it's `config.json`, or one of the same form and small sizes."""
    sliding, full = ((256, 8), (512, 2)) if real else ((8, 4), (16, 2))
    return Geometry(
        vocab_size=262144 if real else 40,
        hidden_size=2816 if real else 48,
        intermediate_size=2112 if real else 24,
        num_attention_heads=16 if real else 8,
        layers=tuple(
            LayerGeometry(kind, *(full if kind == FULL else sliding)) for kind in kinds(letters)
        ),
        sliding_rope=Rope("default", 10_000.0),
        full_rope=Rope("proportional", 1_000_000.0, 0.25),
        sliding_window=1024 if real else 16,
        num_experts=128 if real else 12,
        top_k_experts=8 if real else 4,
        moe_intermediate_size=704 if real else 8,
        canvas_length=256 if real else 8,
        max_position_embeddings=262144 if real else 256,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
    )


@dataclass(frozen=True)
class Line:
    what: str
    seen: str
    promised: str
    holds: bool


def real_network() -> Iterator[Line]:
    """The real network's graph, made in BF16 from nothing by a new process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "graph.onnx"
        command = [sys.executable, "-m", __spec__.name, "--emit", str(path)]
        begin = time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - begin
        gigabytes = json.loads(done.stdout)["peak_kilobytes"] * 1024 / 1e9
        onnx.checker.check_model(path, full_check=True)  # of element types and shapes too
        model = onnx.load(path)
    depth = 5 * len(PERIOD)
    yield Line("seconds", f"{seconds:.1f}", f"<= {SECONDS:.0f}", seconds <= SECONDS)
    yield Line("peak memory, GB", f"{gigabytes:.2f}", f"<= {GIGABYTES:.0f}", gigabytes <= GIGABYTES)
    size = f"{len(model.graph.node)} nodes, {len(model.graph.input)} inputs"
    size += f", {model.ByteSize() / 1e6:.2f} MB"
    yield Line("graph", size, "no weights inside", model.ByteSize() < 10e6)
    yield from _against_small(model, depth)


def _against_small(model: onnx.ModelProto, depth: int) -> Iterator[Line]:
    """Part for part, with a small network of two periods, all of it traced."""
    before, *layers, after = operations(model, depth)
    small = network(PERIOD * 2, real=False)
    traced = export(small, torch.bfloat16, fused=False)
    small_before, *small_layers, small_after = operations(traced, len(small.layers))
    # Beyond two periods, every period is as the second.
    wanted = [*small_layers, *small_layers[len(PERIOD) :] * (depth // len(PERIOD) - 2)]
    for name, mine, other in (
        ("before the layers", before, small_before),
        ("first sliding layer", layers[0], wanted[0]),
        ("first full layer", layers[5], wanted[5]),
        ("last sliding layer", layers[-2], wanted[-2]),
        ("last full layer", layers[-1], wanted[-1]),
        ("after the layers", after, small_after),
    ):
        yield Line(
            f"operations, {name}", str(mine.total()), f"{other.total()}, the same", mine == other
        )
    same = sum(mine == other for mine, other in zip(layers, wanted, strict=True))
    yield Line("layers as in a small full export", str(same), str(depth), same == depth)


def proof(networks: Iterable[str]) -> Iterator[Line]:
    """Stitched graphs against full exports of small networks, in both forms."""
    for letters in networks:
        for fused in (False, True):
            geometry = network(letters, real=False)
            yield _pair(geometry, fused, f"{letters}{', fused' if fused else ''}")
        if (few := period(geometry, policy_of("fp32"))[0]) != geometry:
            yield _chained(geometry, few, f"{letters}, in plans of {len(few.layers)}")


def _chained(geometry: Geometry, few: Geometry, name: str) -> Line:
    """A period taken apart and executed for all layers, against the full export."""
    full, repeated = (export(g, torch.float32, fused=False) for g in (geometry, few))
    prepare(repeated, few, policy_of("fp32"))
    pieces, periods = take_apart(repeated, few), len(geometry.layers) // len(few.layers)
    weights, feeds = random_network(geometry), mixed_pass(geometry)
    found = run_chain(pieces, few, periods, feeds | weights_of(weights))
    wanted = zip(full.graph.output, outputs(full, weights, feeds), strict=True)
    differ = [value.name for value, bits in wanted if not np.array_equal(found[value.name], bits)]
    return Line(name, f"{len(differ)} outputs differ", "no bit", not differ)


def _pair(geometry: Geometry, fused: bool, name: str) -> Line:
    short = export(pattern(geometry), torch.float32, fused)
    full, stitched = export(geometry, torch.float32, fused), stitch(short, geometry)
    depth = len(geometry.layers)
    weights, feeds = random_network(geometry, fused=fused), mixed_pass(geometry)
    both = zip(outputs(stitched, weights, feeds), outputs(full, weights, feeds), strict=True)
    checks = {
        "inputs and outputs": signature(stitched) == signature(full),
        "operations of every part": operations(stitched, depth) == operations(full, depth),
        "bits": all(np.array_equal(mine, other) for mine, other in both),
    }
    differs = [what for what, same in checks.items() if not same]
    seen = f"{len(stitched.graph.node)} nodes, {', '.join(differs) or 'nothing'} differs"
    return Line(name, seen, f"{len(full.graph.node)} nodes, nothing", not differs)


def main(
    emit_to: Annotated[Path | None, typer.Option("--emit", help="Only write the graph.")] = None,
    with_proof: Annotated[bool, typer.Option("--proof", help="Only compare small graphs.")] = False,
    networks: Annotated[
        list[str], typer.Option("--network", help="Layers of a small network, as SFSFSF.")
    ] = list(PROOF),  # noqa: B006 (typer copies it)
) -> None:
    """Print the table; the exit code is 1 where a promise does not hold."""
    if emit_to is not None:
        onnx.save(emit(network(PERIOD * 5, real=True), torch.bfloat16), emit_to)
        print(json.dumps({"peak_kilobytes": _peak_kilobytes()}))
        return
    progress = Console(stderr=True)
    result = Table(title="emission", box=SIMPLE, title_justify="left")
    for heading in ("what", "seen", "promised", ""):
        result.add_column(heading)
    missed = False
    for line in proof(networks) if with_proof else real_network():
        progress.print(f"{line.what}: {line.seen}", highlight=False, markup=False)
        result.add_row(line.what, line.seen, line.promised, "ok" if line.holds else "MISSED")
        missed |= not line.holds
    Console(width=100).print(result)
    raise typer.Exit(int(missed))


def _peak_kilobytes() -> int:
    """Of this program alone; `ru_maxrss` also remembers the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    typer.run(main)
