"""`make bench`: what this service costs and what it gains, each figure against a peer.

Everything that is compared runs in the same call, in turns, on the same number of threads; each
figure is the median of the turns, and each ratio the median of the ratios within a turn. Limits
are those that the first part of the project promises.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dgemma.client import Client
from dgemma.geometry import Geometry
from dgemma.settings import Settings
from dgemma.triton_server.server import TritonServer
from tests.bench import served
from tests.bench.channel import Worker
from tests.bench.workload import FIXED, LONGEST

MODEL_REPOSITORY = Path("model_repository")
EMPTY_MODEL = Path(__file__).with_name("empty_model.py")
EXPERTS = ("grouped_mm", "batched_mm", "eager")  # what HF offers; the fastest is the peer
SLOTS = 8
WIDTH = 100  # of the table, also where the output is no terminal
BARE_PASSES = 100
# A Sudoku of one block, under the checkpoint's own settings.
ONE_BLOCK, BLOCKS = {"max_new_tokens": 96, "seed": 1}, 20
EIGHT = {"max_new_tokens": LONGEST, **FIXED}


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: str
    limit: str
    holds: bool | None  # None: for information


@contextmanager
def server(
    engine: Path,
    checkpoint: Path,
    threads: int,
    repository: Path = MODEL_REPOSITORY,
    slots: int = SLOTS,
) -> Iterator[str]:
    """The real server's gRPC address."""
    settings = Settings.load(
        engine=engine, checkpoint=checkpoint, slots=slots, threads=threads, log_level="warning"
    )
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "triton.log"
        with TritonServer(repository, env=settings.environment(), log=log) as triton:
            yield triton.grpc_url


@contextmanager
def empty_server(engine: Path, checkpoint: Path, threads: int) -> Iterator[str]:
    """The address of the same server around a model that does nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "repository"
        shutil.copytree(MODEL_REPOSITORY, repository)
        (model,) = repository.glob("*/1/model.py")
        shutil.copyfile(EMPTY_MODEL, model)
        with server(engine, checkpoint, threads, repository) as url:
            yield url


def fastest(workers: dict[str, Worker]) -> str:
    """HF's experts implementation that needs the least time for a round, after a round to warm."""
    for worker in workers.values():
        worker.ask()
    seconds = {name: worker.ask()["seconds"] for name, worker in workers.items()}
    return min(seconds, key=lambda name: seconds[name])


def again(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The second of two answers: caches and clocks are still those of another peer at the first."""
    ask()
    return ask()


def measure(engine: Path, checkpoint: Path, threads: int, turns: int) -> list[Figure]:
    """All figures; a few minutes."""
    with ExitStack() as stack:
        ours = stack.enter_context(
            Worker("tests.bench.in_process", str(engine), str(checkpoint), str(threads), threads=1)
        )
        peers = {
            name: stack.enter_context(
                Worker(
                    *("tests.bench.hugging_face", str(checkpoint), name, str(threads)),
                    threads=threads,
                )
            )
            for name in EXPERTS
        }
        url = stack.enter_context(server(engine, checkpoint, threads))
        client = stack.enter_context(Client(url))
        empty_url = stack.enter_context(empty_server(engine, checkpoint, threads))
        empty = stack.enter_context(Client(empty_url))
        bars = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = bars.add_task("warming up", total=turns + 1)
        peer = fastest(peers)
        for name in set(EXPERTS) - {peer}:
            peers[name].__exit__()
        ours.ask(what="round")
        served.round_of(client)
        served.together(url, SLOTS, EIGHT)
        length = Geometry.from_checkpoint(checkpoint).canvas_length
        prompt = ours.ask(what="prompt_tokens")["tokens"]
        contexts = [prompt + done for done in range(0, LONGEST, length)]

        def bare() -> dict[str, Any]:
            return ours.ask(what="bare_requests", rows=SLOTS, contexts=contexts)

        samples: dict[str, list[Any]] = {}
        for turn in range(turns):
            bars.update(task, advance=1, description=f"turn {turn + 1} of {turns}")
            for name, sample in {
                "hf": lambda: again(peers[peer].ask),
                "ours": lambda: again(lambda: ours.ask(what="round")),
                "grpc": lambda: again(lambda: served.round_of(client).to_dict()),
                "outside 1": lambda: ours.ask(what="outside", rows=1),
                "outside 8": lambda: ours.ask(what="outside", rows=SLOTS),
                "block here": lambda: ours.ask(what="one", parameters=ONE_BLOCK, times=BLOCKS)[
                    "seconds"
                ],
                "block grpc": lambda: served.one(client, ONE_BLOCK, BLOCKS),
                "block empty": lambda: served.one(empty, ONE_BLOCK, BLOCKS),
                "bare": bare,
                "eight": lambda: served.together(url, SLOTS, EIGHT),
                "bare again": bare,
                "short": lambda: ours.ask(what="bare", rows=SLOTS, passes=BARE_PASSES),
            }.items():
                samples.setdefault(name, []).append(sample())
    return figures(samples, peer)


def figures(samples: dict[str, list[Any]], peer: str) -> list[Figure]:
    """The table's lines from each turn's samples."""

    def speed(name: str) -> float:
        return median(s["tokens"] / s["seconds"] for s in samples[name])

    def step_ms(name: str) -> float:
        return median(s["seconds"] / s["steps"] * 1e3 for s in samples[name])

    def right(name: str) -> str:
        return f"{samples[name][0]['right']}/{samples[name][0]['asked']} right"

    def of(name: str, key: str) -> float:
        return median(sample[key] for sample in samples[name])

    def ratio(name: str, peer: str) -> float:
        """Speeds of the same turn against each other: the machine's own speed drifts."""
        pairs = zip(samples[name], samples[peer], strict=True)
        return median(a["tokens"] / a["seconds"] / (b["tokens"] / b["seconds"]) for a, b in pairs)

    hf, ours, grpc = (speed(name) for name in ("hf", "ours", "grpc"))
    gain = ratio("ours", "hf")
    added = (
        median(b - a for a, b in zip(samples["block here"], samples["block grpc"], strict=True))
        * 1e3
    )
    empty = median(samples["block empty"]) * 1e3
    eight = median(samples["eight"])
    # The machine's speed drifts within a turn: what is served stands between two of the other.
    beside = zip(samples["bare"], samples["bare again"], strict=True)
    alone = [mean(sample["tokens_per_second"] for sample in both) for both in beside]
    reached = median(s / a for s, a in zip(samples["eight"], alone, strict=True))
    short = of("short", "tokens_per_second")
    of_short = median(
        served / bare["tokens_per_second"]
        for served, bare in zip(samples["eight"], samples["short"], strict=True)
    )
    lines = [
        Figure(
            f"one request, HF generate ({peer})",
            f"{hf:.0f} tokens/s, {step_ms('hf'):.2f} ms/step, {right('hf')}",
            "",
            None,
        ),
        Figure(
            "one request, in process",
            f"{ours:.0f} tokens/s, {step_ms('ours'):.2f} ms/step, {right('ours')}",
            "",
            None,
        ),
        Figure("  against HF", f"{gain:.2f} x", ">= 4 x", gain >= 4),
        Figure(
            "one request, over gRPC",
            f"{grpc:.0f} tokens/s, {ratio('grpc', 'hf'):.2f} x HF",
            "",
            None,
        ),
    ]
    for rows in (1, SLOTS):
        name = f"outside {rows}"
        lines += [
            Figure(
                f"a pass, {rows} request{'s' * (rows > 1)}",
                f"engine {of(name, 'engine_ms'):.2f} ms, tail {of(name, 'tail_ms'):.2f} ms",
                "",
                None,
            ),
            Figure(
                "  outside engine and tail",
                f"{of(name, 'microseconds'):.0f} µs",
                "<= 150 µs",
                of(name, "microseconds") <= 150,
            ),
        ]
    return [
        *lines,
        Figure("Triton and gRPC, a block", f"{added:.2f} ms", "<= 3 ms", added <= 3),
        Figure("  of it, around a model that does nothing", f"{empty:.2f} ms", "", None),
        Figure(
            f"{SLOTS} requests, engine and tail alone", f"{median(alone):.0f} tokens/s", "", None
        ),
        Figure(f"{SLOTS} requests over gRPC", f"{eight:.0f} tokens/s", "", None),
        Figure("  of the bare engine", f"{reached:.0%}", ">= 90%", reached >= 0.9),
        Figure(f"{SLOTS} canvases behind one other, alone", f"{short:.0f} tokens/s", "", None),
        Figure("  of these", f"{of_short:.0%}", "", None),
    ]


def table(lines: list[Figure], threads: int, turns: int) -> Table:
    title = f"{machine()}, {threads} threads, median of {turns}"
    result = Table(title=title, box=SIMPLE, title_justify="left")
    for heading in ("figure", "measured", "limit", ""):
        result.add_column(heading)
    for line in lines:
        mark = "" if line.holds is None else "ok" if line.holds else "MISSED"
        result.add_row(line.name, line.value, line.limit, mark)
    return result


def machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    threads: Annotated[int, typer.Option(help="Of every implementation; 0: one a core.")] = 0,
    turns: Annotated[int, typer.Option(help="Samples of each figure.", min=1)] = 5,
) -> None:
    """Print the figures. The exit code is 1 where a limit is missed."""
    threads = threads or len(os.sched_getaffinity(0))
    lines = measure(engine.resolve(), checkpoint.resolve(), threads, turns)
    Console(width=WIDTH).print(table(lines, threads, turns))
    raise typer.Exit(int(any(line.holds is False for line in lines)))


if __name__ == "__main__":
    typer.run(main)
