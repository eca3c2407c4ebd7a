"""Trains the demo checkpoint from scratch: `python -m dgemma_build.demo.train --run DIR`.

Resumable: a run directory keeps the network, the optimizers and the random state, and a second
call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_build.demo.net import DemoNet, Shape
from dgemma_build.demo.optimizer import Muon, schedule, split_parameters
from dgemma_build.demo.tasks import Batch, SudokuSource, corrupt, count_batch


def loss_of(net: DemoNet, batch: Batch, copies: int, pinned: float) -> Tensor:
    canvas, target, scored = corrupt(batch, copies, pinned)
    fed_back = (torch.rand(len(canvas), 1, 1) < 0.5).float()
    temperature = 0.4 + 0.4 * torch.rand(len(canvas), 1, 1)
    return forward(net, batch.context, batch.start, canvas, target, scored, fed_back, temperature)


def forward(
    net: DemoNet, context: Tensor, start: Tensor, canvas: Tensor, target: Tensor, scored: Tensor,
    fed_back: Tensor, temperature: Tensor,
) -> Tensor:
    """Mean cross-entropy of the scored positions, after one step of self-conditioning by chance."""
    kv, balance = net.encode(context, start)
    silent = torch.zeros(*canvas.shape, net.shape.hidden_size)
    with torch.no_grad():
        first, _ = net.denoise(canvas, silent, [(k.detach(), v.detach()) for k, v in kv], start)
        soft = net.soften(first / temperature) * fed_back
    logits, more = net.denoise(canvas, soft, kv, start)
    per_token = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    weight = scored.flatten().float()
    layers = 2 * net.shape.num_hidden_layers
    return (per_token * weight).sum() / weight.sum() + 0.01 * (balance + more) / layers


@torch.no_grad()
def rollout(
    net: DemoNet, context: Tensor, start: Tensor, steps: int = 48, bound: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Denoise canvases by the entropy-bound sampler: argmax `[B, L]` and steps `[B]`."""
    n, length, vocab = len(context), net.shape.canvas_length, net.shape.vocab_size
    kv, _ = net.encode(context, start)
    canvas = torch.randint(vocab, (n, length))
    soft = torch.zeros(n, length, net.shape.hidden_size)
    last, used = torch.full_like(canvas, -1), torch.zeros(n, dtype=torch.long)
    done = torch.zeros(n, dtype=torch.bool)
    for remaining in range(steps, 0, -1):
        logits, _ = net.denoise(canvas, soft, kv, start)
        z = logits / (0.4 + 0.4 * remaining / steps)
        p = z.softmax(-1)
        entropy = -(p * z.log_softmax(-1)).sum(-1)
        order = entropy.sort(-1)
        within = order.values.cumsum(-1) - order.values <= bound
        accepted = torch.zeros_like(done[:, None].expand(n, length)).scatter(1, order.indices, within)
        drawn = torch.multinomial(p.flatten(0, 1), 1).view(n, length)
        best = torch.where(done[:, None], last, z.argmax(-1))
        used += ~done
        done = done | ((best == last).all(-1) & (entropy.mean(-1) < 0.005))
        last = best
        canvas = torch.where(accepted, drawn, torch.randint(vocab, (n, length)))
        soft = net.soften(z)
        if done.all():
            break
    return last, used


def evaluate(net: DemoNet, source: SudokuSource, seed: int = 0) -> str:
    rng, length, parts = np.random.default_rng(seed), net.shape.canvas_length, []
    for blanks in (20, 30, 40):
        batch = source.batch(rng, np.full(50, blanks), length)
        answer, steps = rollout(net, batch.context, batch.start)
        right = (answer == batch.target).all(-1).float().mean().item()
        parts.append(f"{blanks} blanks {right:.0%} in {steps.float().mean():.1f}")
    for block in (0, 1):
        batch = count_batch(rng, 25, block, length)
        answer, steps = rollout(net, batch.context, batch.start)
        right = (answer == batch.target).all(-1).float().mean().item()
        parts.append(f"count[{block}] {right:.0%} in {steps.float().mean():.1f}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--grids", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--count-share", type=float, default=0.5)
    parser.add_argument("--eval-every", type=int, default=500)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    net = DemoNet(Shape())
    matrices, others = split_parameters(net)
    optimizers = [Muon(matrices, lr=args.lr), torch.optim.AdamW(others, lr=args.lr / 5, betas=(0.9, 0.98), weight_decay=0.0)]
    rates = [args.lr, args.lr / 5]
    average = {k: v.clone() for k, v in net.state_dict().items()}
    step, saved = 0, args.run / "state.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=False)
        net.load_state_dict(state["net"])
        average = state["average"]
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        step = state["step"]
        torch.manual_seed(args.seed + step)
        rng = np.random.default_rng(args.seed + step)
        print("resumed at", step, flush=True)
    source = SudokuSource(args.grids, args.seed)
    fresh = SudokuSource(500, args.seed + 7)
    print("sources ready", flush=True)
    compiled = torch.compile(forward, dynamic=False)
    losses: list[float] = []
    began, began_step = time.time(), step
    while step < args.steps:
        rate = schedule(step, args.steps, decay=args.decay)
        for o, r in zip(optimizers, rates, strict=True):
            o.param_groups[0]["lr"] = r * rate
        counting = rng.random() < args.count_share
        block = int(rng.choice(4, p=[0.4, 0.3, 0.15, 0.15]))
        if counting:
            batch = count_batch(rng, args.batch if block < 2 else args.batch // 2, block, 96)
        else:
            most = min(50, 12 + step // 60)
            blanks = rng.integers(5, most + 1, size=args.batch)
            batch = source.batch(rng, blanks, net.shape.canvas_length)
        canvas, target, scored = corrupt(batch, args.copies, 0.0 if counting else 0.25)
        fed_back = (torch.rand(len(canvas), 1, 1) < 0.5).float()
        temperature = 0.4 + 0.4 * torch.rand(len(canvas), 1, 1)
        run = forward if counting and block > 1 else compiled
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(net, batch.context, batch.start, canvas, target, scored, fed_back, temperature)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        with torch.no_grad():
            for k, v in net.state_dict().items():
                average[k].lerp_(v, 0.002)
        if step % 100 == 0:
            speed = (step - began_step) / (time.time() - began)
            print(f"{step} loss {np.mean(losses[-100:]):.4f} {speed:.2f} it/s {time.time()-began:.0f}s", flush=True)
        if step % args.eval_every == 0 or step == args.steps:
            torch.save({"net": net.state_dict(), "average": average, "step": step, "optimizers": [o.state_dict() for o in optimizers]}, saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").rename(saved)
            print(f"{step}: {evaluate(net, fresh)}", flush=True)


if __name__ == "__main__":
    main()
