"""The generator's own condition: how much of a core it takes and how late its timers are."""

from __future__ import annotations

import asyncio
import time

from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.run_file import Client

TICK_S = 0.02
SECOND_S = 1.0
_KEPT = 200_000  # ticks: of the last hour


class Watch:
    """Ticks until it is cancelled."""

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._shares: list[float] = []
        self._cpu, self._wall = time.process_time(), time.monotonic()

    async def run(self) -> None:
        cpu, wall = self._cpu, self._wall
        while True:
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._lags.append(now - due)
            if now - wall >= SECOND_S:
                self._shares.append((time.process_time() - cpu) / (now - wall))
                cpu, wall = time.process_time(), now
                del self._lags[:-_KEPT]

    def client(self) -> Client | None:
        """None before the first tick."""
        if not self._lags:
            return None
        share = (time.process_time() - self._cpu) / (time.monotonic() - self._wall)
        return Client(
            cpu_share=share,
            cpu_share_max=max(self._shares, default=share),
            loop_lag_p50_s=percentile(self._lags, 0.5),
            loop_lag_p99_s=percentile(self._lags, 0.99),
            loop_lag_max_s=max(self._lags),
        )
