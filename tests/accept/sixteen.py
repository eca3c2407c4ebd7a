"""How much of what engine and tail can do reaches sixteen clients at once.

Knows which speeds are compared; they are measured by the benchmark's own workers, in turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import track

from dgemma.geometry import Geometry
from tests.accept.main_job import Line
from tests.bench import served
from tests.bench.__main__ import EIGHT, server
from tests.bench.channel import Worker
from tests.bench.workload import LONGEST

CROWD, BARE_PASSES = 16, 15
PROMISED = 0.9


def sixteen(engine: Path, checkpoint: Path, turns: int) -> Iterator[Line]:
    """Each ratio is the median of those within a turn; the bare speed is taken on either side."""
    threads = len(os.sched_getaffinity(0))
    length = Geometry.from_checkpoint(checkpoint).canvas_length
    alone, short = [], []
    shares: dict[str, list[float]] = {"over gRPC": [], "in process": []}
    with ExitStack() as stack:
        arguments = str(engine), str(checkpoint), str(threads), str(CROWD)
        ours = stack.enter_context(Worker("tests.bench.in_process", *arguments, threads=1))
        url = stack.enter_context(server(engine, checkpoint, threads, slots=CROWD))
        # The rows of those very canvases: behind a longer context attention takes longer.
        prompt = ours.ask(what="prompt_tokens")["tokens"]
        contexts = [prompt + done for done in range(0, LONGEST, length)]

        def bare(contexts: list[int]) -> float:
            found = ours.ask(what="bare", rows=CROWD, passes=BARE_PASSES, contexts=contexts)
            return float(found["tokens_per_second"])

        def here() -> float:
            found = ours.ask(what="together", requests=CROWD, parameters=EIGHT)
            return float(found["tokens_per_second"])

        def over_grpc() -> float:
            return served.together(url, CROWD, EIGHT)

        here()
        over_grpc()
        for _ in track(range(turns), "turns", console=Console(stderr=True), transient=True):
            for name, speed in (("over gRPC", over_grpc), ("in process", here)):
                before, found, after = bare(contexts), speed(), bare(contexts)
                alone.append((before + after) / 2)
                shares[name].append(found / alone[-1])
            short.append(bare([length]) / alone[-1])
    yield Line(
        f"bare engine and tail, {CROWD} rows of these canvases",
        f"{median(alone):.0f} tokens/s, {threads} threads",
        "",
    )
    yield Line("  behind one canvas only", f"{median(short):.1%} of it", "")
    for name, ratios in shares.items():
        promised = f">= {PROMISED:.0%}" if name == "over gRPC" else ""
        yield Line(
            f"  {CROWD} requests {name}",
            f"{median(ratios):.1%} of it ({min(ratios):.0%} to {max(ratios):.0%})",
            promised,
            median(ratios) >= PROMISED if promised else None,
        )
