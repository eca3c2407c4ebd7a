"""Trains the demo checkpoint from scratch: `python -m dgemma_build.demo.train --run DIR`.

The recipe is block diffusion's (uniform noise, an encoder for the clean context, self-conditioning
half of the time). Resumable: DIR keeps network, average and optimizers, and a second call goes on
where the first one stopped. Uses a GPU where there is one.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dgemma_build.demo.monitor import report
from dgemma_build.demo.net import DemoNet, Shape
from dgemma_build.demo.optimizer import Muon, schedule, split_parameters
from dgemma_build.demo.tasks import (
    MOST_BLANKS,
    Batch,
    SudokuSource,
    corrupt,
    count_batch,
    count_blocks,
)

BATCH, COPIES = 32, 3  # contexts, and noised canvases of each
LEARNING_RATE = 0.02
PINNED_SHARE = 0.25  # of Sudoku canvases whose clues are held, as a template would
BALANCE = 0.01  # weight of the loss that keeps experts evenly used
AVERAGING = 0.002
# Units that multiply BF16; elsewhere a CPU imitates it, many times slower than it computes fp32.
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM
# Some blanks only, then more: a puzzle that needs a search teaches nothing at first.
FIRST_BLANKS, STEPS_PER_BLANK = 12, 60


def loss(
    net: DemoNet, context: Tensor, start: Tensor, canvas: Tensor, target: Tensor, scored: Tensor
) -> Tensor:
    """Mean cross-entropy of the scored positions, after a step of self-conditioning by chance.

    context `[B, P]`, start `[B]`; canvas, target and scored `[B * COPIES, L]`.
    """
    n = len(canvas)
    kv, balance = net.encode(context, start)
    with torch.no_grad():
        silent = torch.zeros(*canvas.shape, net.shape.hidden_size)
        first, _ = net.denoise(canvas, silent, [(k.detach(), v.detach()) for k, v in kv], start)
        temperature = 0.4 + 0.4 * torch.rand(n, 1, 1)
        soft = net.soften(first / temperature) * (torch.rand(n, 1, 1) < 0.5)
    logits, more = net.denoise(canvas, soft, kv, start)
    per_token = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    weight = scored.flatten().float()
    layers = 2 * net.shape.num_hidden_layers
    return (per_token * weight).sum() / weight.sum() + BALANCE * (balance + more) / layers


def computes_bf16(device: str) -> bool:
    """Whether products in BF16 are faster than in fp32 there."""
    return device != "cpu" or any(map(torch.cpu.get_capabilities().get, BF16_UNITS))


class Training:
    """A network with its average and optimizers, and the file that keeps them."""

    def __init__(self, directory: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.path = directory / "state.pt"
        self.net = DemoNet(Shape())
        matrices, others = split_parameters(self.net)
        self.rates = (LEARNING_RATE, LEARNING_RATE / 5)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=self.rates[0]),
            torch.optim.AdamW(others, lr=self.rates[1], betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.done = 0
        if self.path.exists():
            self._resume(torch.load(self.path, map_location=torch.get_default_device()))
        torch.manual_seed(seed + self.done)
        self.rng = np.random.default_rng(seed + self.done)
        # On a CPU, compiling takes longer than it saves.
        self.loss = torch.compile(loss, dynamic=False) if torch.cuda.is_available() else loss

    def _resume(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.average, self.done = state["average"], state["step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "step": self.done,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.path)

    def step(self, source: SudokuSource, total: int, count_share: float) -> float:
        """One batch of one skill; returns its loss."""
        factor = schedule(self.done, total)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        counting = self.rng.random() < count_share
        batch = self._counting() if counting else self._sudoku(source)
        noised = corrupt(batch, COPIES, 0.0 if counting else PINNED_SHARE)
        device = torch.get_default_device().type
        with torch.autocast(device, torch.bfloat16, enabled=computes_bf16(device)):
            value: Tensor = self.loss(self.net, batch.context, batch.start, *noised)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self.net.state_dict().items():
                self.average[name].lerp_(parameter, AVERAGING)
        self.done += 1
        return value.item()

    def _sudoku(self, source: SudokuSource) -> Batch:
        most = min(MOST_BLANKS, FIRST_BLANKS + self.done // STEPS_PER_BLANK)
        blanks = self.rng.integers(5, most + 1, size=BATCH)
        return source.batch(self.rng, blanks, self.net.shape.canvas_length)

    def _counting(self) -> Batch:
        length = self.net.shape.canvas_length
        block = min(int(self.rng.geometric(0.5)), count_blocks(length)) - 1
        return count_batch(self.rng, BATCH, block, length)


def main(
    run: Annotated[Path, typer.Option(help="Directory of this training.")],
    steps: Annotated[int, typer.Option(help="Batches in all.", min=1)] = 12_000,
    count_share: Annotated[float, typer.Option(help="Share of counting batches.")] = 0.4,
    grids: Annotated[int, typer.Option(help="Grids to dig puzzles from.", min=64)] = 20_000,
    seed: Annotated[int, typer.Option(help="Of grids, weights and noise.")] = 1,
    report_every: Annotated[int, typer.Option(help="Steps between reports.", min=1)] = 500,
) -> None:
    """Train until `steps` batches are done."""
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    run.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with console.status("digging Sudokus"):
        source, unseen = SudokuSource(grids, seed), SudokuSource(512, seed + 1000)
    training = Training(run, seed)
    recent: deque[float] = deque(maxlen=100)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task("training", total=steps, completed=training.done)
        try:
            while training.done < steps:
                recent.append(training.step(source, steps, count_share))
                bars.update(task, advance=1, description=f"loss {mean(recent):.4f}")
                if training.done % report_every == 0 or training.done == steps:
                    training.save()
                    line = f"{training.done}: loss {mean(recent):.4f}, " + report(
                        training.net, unseen
                    )
                    console.print(line, highlight=False, soft_wrap=True)
        finally:
            training.save()


if __name__ == "__main__":
    typer.run(main)
