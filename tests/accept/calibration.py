"""`make accept-6`, whether the load test tells the truth: against a server that logs its own.

Knows what is promised; the server runs on one core, the generator, or Locust and its generator, on
the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from tests.accept.main_job import Line, table
from tests.loadtest.calibrate import Pace, Through, calibrate, stalled

WIDTH = 120
BLOCKS = 20_000  # of each calibration, at least
MEDIAN, TAIL = 0.02, 0.05  # relative error of p50, and of p95 and p99
RATE, STALLED_S = 100.0, 2.0  # requests a second, and how long the server does nothing
COUNTED = 0.1  # relative error of the number of requests that a stall delays
# Users, what the server draws, seconds: about 360 and 700 blocks a second.
CASES = ((50, Pace(200.0, 100.0), 65.0), (150, Pace(300.0, 150.0), 35.0))


class Name(StrEnum):
    """The parts of the table."""

    GENERATOR = "generator"
    LOCUST = "locust"
    HTTP = "http"
    STALL = "stall"


def through(what: Through, protocol: str, share: float) -> Iterator[Line]:
    """Two lines for each number of users: the medians, and the tails."""
    for users, pace, seconds in CASES:
        found = calibrate(what, users, max(3.0, seconds * share), pace, protocol)
        middle = found.worst(0.5)
        cpu = f", {found.cpu_share:.0%} of a core" if found.cpu_share is not None else ""
        yield Line(
            f"{what}, {protocol}, {users} users",
            f"{found.blocks} blocks, sent {1e3 * found.lag_p99_s:.1f} ms late (p99){cpu}",
            f">= {BLOCKS} blocks",
            found.blocks >= BLOCKS if share >= 1 else None,
        )
        yield Line(
            "  p50",
            f"{middle.relative:+.2%} at worst ({middle.figure}: {1e3 * middle.ours_s:.1f} ms, "
            f"truth {1e3 * middle.truth_s:.1f})",
            f"± {MEDIAN:.0%}",
            abs(middle.relative) <= MEDIAN,
        )
        worst = [found.worst(level) for level in (0.95, 0.99)]
        yield Line(
            "  p95, p99",
            ", ".join(f"{error.relative:+.2%} ({error.figure})" for error in worst) + " at worst",
            f"± {TAIL:.0%}",
            all(abs(error.relative) <= TAIL for error in worst),
        )


def stalls(share: float) -> Iterator[Line]:
    """Requests that were due while the server did nothing are late by what was left of it."""
    for what in ("generator", "locust"):
        found = stalled(what, RATE, max(6.0, 10.0 * share), STALLED_S)
        expected = found.due / 2
        right = abs(found.waited_half / expected - 1) <= COUNTED
        yield Line(
            f"{what}: a server that stalls for {STALLED_S:g} s",
            f"{found.waited_half} requests waited longer than {STALLED_S / 2:g} s, the longest "
            f"{found.longest_s:.2f} s",
            f"{expected:.0f} ± {COUNTED:.0%}, {STALLED_S:g} s",
            right and found.longest_s >= 0.95 * STALLED_S,
        )


def main(
    only: Annotated[list[Name] | None, typer.Option(help="Parts to run; repeatable.")] = None,
    share: Annotated[float, typer.Option(help="Of the time.", min=0.01, max=1.0)] = 1.0,
) -> None:
    """Print the table; some six minutes. The exit code is 1 where a promise does not hold."""
    parts = {
        Name.GENERATOR: lambda: through("generator", "grpc", share),
        Name.HTTP: lambda: through("generator", "http", share),
        Name.LOCUST: lambda: through("locust", "grpc", share),
        Name.STALL: lambda: stalls(share),
    }
    progress = Console(stderr=True)
    lines: list[Line] = []
    for name in only or list(parts):
        for line in parts[name]():
            said = f"{line.what.strip()}: {line.seen}"
            progress.print(said, highlight=False, markup=False, soft_wrap=True)
            lines.append(line)
    Console(width=WIDTH).print(table(lines, "the load test, calibrated"))
    raise typer.Exit(int(any(line.holds is False for line in lines)))


if __name__ == "__main__":
    typer.run(main)
