"""Whether the generator itself was fast enough for what it says to be true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dgemma_loadtest.metrics.latency import first_block
from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Client

LAG_SHARE = 0.05  # of a percentile of the time to the first block, that the lag's may be
LEVELS = (0.5, 0.99)
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
    reasons = list(_late(lags, [f for f in map(first_block, records) if f is not None]))
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
    p50, p99 = (percentile(lags, level) for level in LEVELS)
    return Overhead(p50, p99, max(lags), client, bool(reasons), tuple(reasons))


def _late(lags: Sequence[float], firsts: Sequence[float]) -> Iterator[str]:
    """Latencies count from when a request was due, so this share of them is the generator's own."""
    for level in LEVELS if firsts else ():
        lag, first = percentile(lags, level), percentile(firsts, level)
        if lag > max(LAG_FREE_S, LAG_SHARE * first):
            yield (
                f"requests were sent {1e3 * lag:.1f} ms late (p{100 * level:g}), which is "
                f"{lag / first:.0%} of the time to the first block; at most {LAG_SHARE:.0%} is "
                "allowed: offer less, or spread the load over more processes (locust --processes)"
            )
