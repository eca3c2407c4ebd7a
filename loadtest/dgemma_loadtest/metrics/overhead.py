"""Whether the generator itself was fast enough for what it says to be true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgemma_loadtest.metrics.latency import first_block
from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Client

LAG_SHARE = 0.05  # of the median time to the first block, that the lag's p99 may be
LAG_FREE_S = 0.001  # a lag below this is of no account
CPU_SHARE = 0.9  # of a core, over the run
LOOP_LAG_S = 0.05  # p99 of timers


@dataclass(frozen=True)
class Overhead:
    """`spoiled`: figures tell of the generator, for these reasons."""

    lag_p50_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    client: Client | None
    spoiled: bool
    reasons: tuple[str, ...]


def overhead(records: Sequence[Record], client: Client | None) -> Overhead:
    lags = [record.lag_s for record in records if record.started_s is not None]
    if not lags:
        return Overhead(None, None, None, client, False, ())
    p99 = percentile(lags, 0.99)
    reasons: list[str] = []
    firsts = [first for first in map(first_block, records) if first is not None]
    if firsts and p99 > max(LAG_FREE_S, LAG_SHARE * percentile(firsts, 0.5)):
        reasons.append(
            f"requests were sent up to {1e3 * p99:.1f} ms late (p99), "
            f"{p99 / percentile(firsts, 0.5):.0%} of the median time to the first block; at most "
            f"{LAG_SHARE:.0%} is allowed: offer less, or spread the load over more processes "
            "(locust --processes)"
        )
    if client is not None and client.cpu_share > CPU_SHARE:
        reasons.append(
            f"the generator used {client.cpu_share:.0%} of a core; at most {CPU_SHARE:.0%} is "
            "allowed: spread the load over more processes (locust --processes)"
        )
    if client is not None and client.loop_lag_p99_s > LOOP_LAG_S:
        reasons.append(
            f"the generator's timers came {1e3 * client.loop_lag_p99_s:.0f} ms late (p99); at most "
            f"{1e3 * LOOP_LAG_S:.0f} ms is allowed: run it on a machine that is less busy"
        )
    return Overhead(percentile(lags, 0.5), p99, max(lags), client, bool(reasons), tuple(reasons))
