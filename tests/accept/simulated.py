"""`make accept-3`, what takes a GPU that there is not: the slow promises of many users at once.

Knows what is promised and on which simulated platform it is looked at; nothing here was measured on
a GPU. The service is the real one, Triton included, where the device's time is watched; fairness
and long prompts are run in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tests.accept.first_block import NEIGHBOURS, Reading, read
from tests.accept.main_job import Line, table
from tests.accept.simulated_service import alone, simulated_server, together
from tests.dgemma.scheduler.fairness import (
    FAIR,
    FLOOD_FACTOR,
    PLAIN,
    SHARE_ERROR,
    TENANTS_FACTOR,
    WEIGHTS,
    Ground,
    longest_wait_s,
    share_error,
    shares,
    thousand_to_one,
    victim_p99_s,
    worst_wait_s,
)
from tests.dgemma.scheduler.test_fairness import GROUND as EMPTY
from tests.dgemma.simulated_stage import ground_of

PLATFORM = "h100-fp8"
STREAMS, IDLE = 32, 0.03
ALONE = 0.97  # of 256 / (passes × pass time)
PASSES = 15_000  # of each run in virtual time
FLOOD = 100  # requests of one tenant at once
LONG_ON = ("h100-fp8", "dgx-spark-fp8")
PROMPTS = (8192, 32768, 131072)
WIDTH = 120


def kept_busy(platform: str, requests: int, seconds: float) -> Iterator[Line]:
    """The device's time under the whole service."""
    with simulated_server(platform, STREAMS) as server:
        one = alone(server, requests)
        many = together(server, STREAMS, seconds)
    rate, pass_ms = one.tokens / one.wall_s, 1e3 * one.spent.busy / one.passes
    canvases = one.tokens / 256
    bound = 256 / (one.passes / canvases * pass_ms / 1e3)
    seen = f"{rate:.0f} tokens/s, {rate / bound:.1%} of 256 / ({one.passes / canvases:.1f} passes"
    yield Line(
        f"simulated {platform}, one stream",
        f"{seen} × {pass_ms:.2f} ms)",
        f">= {ALONE:.0%}",
        rate >= ALONE * bound,
    )
    share = many.spent.starved_share
    yield Line(
        f"simulated {platform}, {STREAMS} streams",
        f"idle {share:.2%} of {many.spent.busy + many.spent.starved:.1f} s with work queued",
        f"<= {IDLE:.0%}",
        share <= IDLE,
    )


def fairness(ground: Ground, where: str) -> Iterator[Line]:
    """Each promise, and that it does not hold first come, first served."""
    bound = longest_wait_s(ground, WEIGHTS, own=1.0)
    yield Line(
        f"{where}: the longest wait, before",
        f"{bound:.1f} s from weights 1, 2, 4 beside 1, {ground.slots} slots, turns of at most "
        f"{ground.turn_rows} rows",
        "",
    )
    for options, name in ((FAIR, "fair"), (PLAIN, "  control: fcfs")):
        wanted = options is FAIR
        found = shares(ground, options, PASSES)
        error = share_error(found)
        yield Line(
            f"{name}: weights 1:2:4",
            ":".join(f"{share:.2f}" for share in found.values()) + f", {error:.1%} off",
            f"<= {SHARE_ERROR:.0%}" if wanted else "misses it",
            (error <= SHARE_ERROR) is wanted,
        )
        flooded, quiet = (victim_p99_s(ground, options, n, PASSES) for n in (FLOOD, 2))
        yield Line(
            f"{name}: p99 beside a flood",
            f"{flooded:.2f} s, {flooded / quiet:.2f} × {quiet:.2f} s beside good neighbours",
            f"<= {FLOOD_FACTOR} ×" if wanted else "misses it",
            (flooded <= FLOOD_FACTOR * quiet) is wanted,
        )
        wait = worst_wait_s(ground, options, PASSES)
        yield Line(
            f"{name}: longest wait",
            f"{wait:.2f} s",
            f"<= {bound:.1f} s" if wanted else "misses it",
            (wait <= bound) is wanted,
        )
    # Where engine and tail take no time at all, what deciding costs weighs most.
    factor = median(thousand_to_one(EMPTY) for _ in range(5))
    yield Line(
        "a step with 1000 tenants",
        f"{factor:.3f} × one with 1 (paired)",
        f"<= {TENANTS_FACTOR} ×",
        factor <= TENANTS_FACTOR,
    )


def neighbours(readings: list[Reading]) -> Iterator[Line]:
    """What long prompts cost the streams that they are read beside."""
    extra = max(reading.extra_passes for reading in readings)
    yield Line(
        "a block beside a long prompt, in passes",
        f"{extra} more than its steps",
        "<= 1",
        extra <= 1,
    )
    longest = max(readings, key=lambda reading: reading.block_grew)
    yield Line(
        "  in time, which a fair share of the device costs",
        f"{longest.block_grew:.1f} passes longer ({longest.platform}, {longest.prompt})",
        "",
    )
    worst = max(readings, key=lambda reading: reading.step_grew_s / reading.quiet_pass_s)
    yield Line(
        "a step beside a long prompt",
        f"held up {1e3 * worst.step_grew_s:.0f} ms, {worst.step_grew_s / worst.quiet_pass_s:.2f} "
        f"of a pass of {1e3 * worst.quiet_pass_s:.0f} ms ({worst.platform}, {worst.prompt})",
        "<= 1 pass",
        worst.step_grew_s <= worst.quiet_pass_s,
    )


def first_blocks(readings: list[Reading]) -> Table:
    result = Table(
        title=f"simulated: time to the first block, alone and beside {NEIGHBOURS} decoding streams",
        caption=(
            "block: the mean of a neighbour's blocks without the prompt; + prompt, + stream: by "
            "how many passes' time it is longer beside the prompt, and beside one more stream that "
            "decodes; more: passes in which it was not denoised, at most; step: the longest pass"
        ),
        box=SIMPLE,
        title_justify="left",
        caption_justify="left",
    )
    result.add_column("platform", no_wrap=True)
    for heading in ("prompt", "alone, s", "beside, s", "block, s", "+ prompt", "+ stream", "more"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("step, ms", justify="right", no_wrap=True)
    for r in readings:
        result.add_row(
            *(r.platform, f"{r.prompt}", f"{r.alone_s:.2f}", f"{r.beside_s:.2f}"),
            *(f"{r.quiet_block_s:.2f}", f"{r.block_grew:.1f}", f"{r.crowd_grew:.1f}"),
            *(f"{r.extra_passes}", f"{1e3 * r.quiet_pass_s:.0f} → {1e3 * r.pass_s:.0f}"),
        )
    return result


def main(
    platform: Annotated[str, typer.Option(help="As DGEMMA_SIMULATE takes it.")] = PLATFORM,
    requests: Annotated[int, typer.Option(help="Of the one stream.", min=1)] = 8,
    seconds: Annotated[float, typer.Option(help="Of the many streams.", min=5)] = 30.0,
) -> None:
    """Print the tables; about two minutes. The exit code is 1 where a promise does not hold."""
    console, progress = Console(width=WIDTH), Console(stderr=True)
    readings = [read(where, prompt) for where in LONG_ON for prompt in PROMPTS]
    console.print(first_blocks(readings))
    lines: list[Line] = []
    for part in (
        neighbours(readings),
        fairness(ground_of(platform), f"simulated {platform}"),
        kept_busy(platform, requests, seconds),
    ):
        for line in part:
            said = f"{line.what.strip()}: {line.seen}"
            progress.print(said, highlight=False, markup=False, soft_wrap=True)
            lines.append(line)
    console.print(table(lines, "simulated: many users at once"))
    raise typer.Exit(int(any(line.holds is False for line in lines)))


if __name__ == "__main__":
    typer.run(main)
