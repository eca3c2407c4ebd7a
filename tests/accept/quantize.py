"""What quantising a large checkpoint costs, and whether it survives being killed, as a table.

Knows how to make a synthetic checkpoint of the 26B network's layers and how to watch a process;
the work is done by `dgemma-build quantize`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dgemma.geometry import FULL, SLIDING, Geometry, LayerGeometry, Rope
from dgemma.model.checkpoint import hf_name, parameter_shapes
from dgemma.weight_store import WeightStore
from dgemma_build.store import write_store
from tests.dgemma.model.tiny_weights import config_of

LIMIT = 2e9  # bytes of memory
SHARD = 2e9  # bytes of a checkpoint's file, about
COMMAND = "from dgemma_build.cli import app; app()"


def geometry_of_26b(layers: int) -> Geometry:
    """The 26B network's, but for the number of its layers."""
    sliding, full = LayerGeometry(SLIDING, 256, 8), LayerGeometry(FULL, 512, 2)
    return Geometry(
        vocab_size=262_144,
        hidden_size=2816,
        intermediate_size=2112,
        num_attention_heads=16,
        layers=(*(sliding for _ in range(layers - 1)), full),
        sliding_rope=Rope("default", 10_000.0),
        full_rope=Rope("proportional", 1_000_000.0, 0.25),
        sliding_window=1024,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
        canvas_length=256,
        max_position_embeddings=262_144,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
    )


def write_synthetic(directory: Path, geometry: Geometry) -> int:
    """A checkpoint of random weights in several files; returns its bytes."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config_of(geometry)))
    files: list[dict[str, tuple[int, ...]]] = [{}]
    filled = total = 0.0
    for name, shape in parameter_shapes(geometry).items():
        size = 2.0 * torch.Size(shape).numel()
        if filled > 0 and filled + size > SHARD:
            files.append({})
            filled = 0
        files[-1][hf_name(name)] = shape
        filled, total = filled + size, total + size
    weight_map = {}
    for index, shapes in enumerate(files):
        file = f"model-{index + 1:05}-of-{len(files):05}.safetensors"
        write_store(directory / file, shapes, torch.bfloat16, _random(shapes))
        weight_map |= dict.fromkeys(shapes, file)
    index = {"weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return int(total)


def _random(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Parts of one stretch of random weights: drawing billions would take longer than all else."""
    generator = torch.Generator().manual_seed(0)
    stretch = (torch.randn(2**22 + 4099, generator=generator) * 0.02).bfloat16()
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        yield name, stretch.repeat(count // len(stretch) + 1)[:count].view(shape)


@dataclass(frozen=True)
class Ran:
    """A process that has ended, or was ended."""

    seconds: float
    peak: int  # bytes
    killed: bool


def quantize(checkpoint: Path, precision: str, out: Path, kill_at: float | None = None) -> Ran:
    """Run the command; kill it once that many bytes are written beside `out`."""
    options = ["--checkpoint", str(checkpoint), "--precision", precision, "--out", str(out)]
    began = time.monotonic()
    arguments = [sys.executable, "-c", COMMAND, "quantize", *options]
    process = os.posix_spawn(sys.executable, arguments, os.environ)
    work = out.with_name(out.name + ".partial")
    killed, peak = False, 0
    while True:
        peak = max(peak, _high_water(process))
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            break
        if kill_at is not None and not killed and _written(work) >= kill_at:
            os.kill(process, signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    if not killed and status:
        raise RuntimeError(f"the command ended with {os.waitstatus_to_exitcode(status)}")
    return Ran(time.monotonic() - began, peak, killed)


def _high_water(process: int) -> int:
    """The most memory that a process has had so far, 0 once it has ended.

    What `wait4` says in the end would include its parent's, from before it became a program.
    """
    status = Path(f"/proc/{process}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def _written(directory: Path) -> int:
    try:
        return sum(path.stat().st_size for path in directory.iterdir())
    except FileNotFoundError:  # not begun, or renamed meanwhile
        return 0


@dataclass(frozen=True)
class Line:
    """One precision's figures."""

    precision: str
    size: int
    whole: Ran
    resumed: Ran
    finished: int  # shards that the killed run left
    same: bool

    @property
    def peak(self) -> int:
        return max(self.whole.peak, self.resumed.peak)

    @property
    def holds(self) -> bool:
        return self.peak <= LIMIT and self.same and self.finished > 0


def measure(checkpoint: Path, precision: str, scratch: Path) -> Line:
    """An uninterrupted run, a run killed half-way, and the run that goes on from there."""
    out = scratch / "store"
    whole = quantize(checkpoint, precision, out)
    manifest = WeightStore.open(out).manifest
    expected = {name: record.sha256 for name, record in manifest.files.items()}
    expected_manifest = (out / "store.json").read_bytes()
    shutil.rmtree(out)
    broken = quantize(checkpoint, precision, out, kill_at=manifest.size / 2)
    assert broken.killed, "it was faster than its observer"
    left = list((scratch / "store.partial").glob("*.safetensors"))
    resumed = quantize(checkpoint, precision, out)
    store = WeightStore.open(out, deep=True)
    got = {name: record.sha256 for name, record in store.manifest.files.items()}
    same = got == expected and (out / "store.json").read_bytes() == expected_manifest
    shutil.rmtree(out)
    return Line(precision, manifest.size, whole, resumed, len(left), same)


def table(lines: list[Line], size: int) -> Table:
    result = Table(title=f"quantize, {size / 1e9:.1f} GB in BF16", box=SIMPLE, title_justify="left")
    for heading in ("precision", "store", "seconds", "memory", "killed half-way", "resumed", ""):
        result.add_column(heading)
    for line in lines:
        result.add_row(
            line.precision,
            f"{line.size / 1e9:.2f} GB",
            f"{line.whole.seconds:.0f}",
            f"{line.peak / 1e9:.2f} GB (<= {LIMIT / 1e9:.0f})",
            f"{line.finished} shards left",
            f"{line.resumed.seconds:.0f} s, {'same' if line.same else 'OTHER'} bytes",
            "ok" if line.holds else "MISSED",
        )
    return result


def main(
    precision: Annotated[list[str] | None, typer.Option(help="Which ones; all by default.")] = None,
    layers: Annotated[int, typer.Option(help="4 make a checkpoint of 8 GB.", min=1)] = 4,
    scratch: Annotated[Path | None, typer.Option(help="Where 17 GB are free.")] = None,
) -> None:
    """Print the table; some minutes a precision. The exit code is 1 where something is missed."""
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        work = Path(directory)
        size = write_synthetic(work / "checkpoint", geometry_of_26b(layers))
        lines = []
        for name in precision or ["fp8", "int4", "nvfp4", "bf16"]:
            progress.print(f"{name} …", highlight=False)
            lines.append(measure(work / "checkpoint", name, work))
    Console(width=120).print(table(lines, size))
    raise typer.Exit(int(not all(line.holds for line in lines)))


if __name__ == "__main__":
    typer.run(main)
