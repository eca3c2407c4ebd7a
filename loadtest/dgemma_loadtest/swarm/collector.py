"""What all generators of a Locust run say, in one directory of results.

Knows stages as they were begun and what Locust's own tables are told; runs where the master is, or
in the one process that there is.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dgemma_loadtest import driver, recording, run_file
from dgemma_loadtest.clock import Clock
from dgemma_loadtest.metrics.slo import Slo
from dgemma_loadtest.metrics.summary import Summary
from dgemma_loadtest.run_file import Client, Host, Run, Server, StageWindow
from dgemma_loadtest.scenario import Scenario
from dgemma_loadtest.swarm.settings import SwarmSettings


class Collector:
    """From the beginning of a test to its end."""

    def __init__(self, out: Path, settings: SwarmSettings, scenario: Scenario, target: str) -> None:
        self.out, self.clock = driver.prepared(out), Clock()
        self._open = False  # whether requests of the last stage may be due
        self._writer = recording.Writer(out / recording.FILE)
        self._run = Run(
            target=target,
            scenario=scenario.model_dump(mode="json", by_alias=True, exclude_none=True),
            seed=settings.seed,
            started_at=datetime.fromtimestamp(self.clock.epoch_unix, UTC).isoformat(
                timespec="milliseconds"
            ),
            epoch_unix=self.clock.epoch_unix,
            host=Host.here(),
            server=Server("openai" if target.startswith("http") else "triton"),
            generator="locust",
            slo=Slo.parse(settings.slo).limits(),
        )
        self._write()

    def stage(self, name: str, warmup_s: float | None, offered: dict[str, float]) -> None:
        """Requests that are due from now on belong to it."""
        now = self.clock.now()
        measured = now + (warmup_s or 0.0)
        self.stop()
        window = StageWindow(name, now, measured, now, now, offered=offered)
        self._run = replace(self._run, stages=(*self._run.stages, window))
        self._open = True
        self._write()

    def measure(self) -> None:
        """All users are there: from now on requests count."""
        if self._run.stages:
            last = replace(self._run.stages[-1], measured_from_s=self.clock.now())
            self._run = replace(self._run, stages=(*self._run.stages[:-1], last))

    def records(self, lines: list[str]) -> None:
        self._writer.add_lines(line.encode() for line in lines)

    def server(self, said: dict[str, Any], fit: dict[str, Any]) -> None:
        self._run = replace(self._run, server=Server(**said), fit=fit)
        self._write()

    def client(self, client: Client) -> None:
        """What a generator cost; of several, the busiest one's is kept."""
        known = self._run.client
        if known is None or client.cpu_share > known.cpu_share:
            self._run = replace(self._run, client=client)

    def stop(self) -> None:
        """No more requests are due in the stage."""
        if self._open:
            now = self.clock.now()
            last = replace(self._run.stages[-1], arrivals_end_s=now, ended_s=now)
            self._run = replace(self._run, stages=(*self._run.stages[:-1], last))
            self._open = False

    def finish(self, failure: str | None) -> Summary:
        """Everything has been heard: the figures."""
        self._writer.close()
        self._run = replace(
            self._run, state="complete" if failure is None else "failed", why=failure
        )
        if self._run.stages:
            last = replace(self._run.stages[-1], ended_s=self.clock.now())
            self._run = replace(self._run, stages=(*self._run.stages[:-1], last))
        self._write()
        return driver.summed_up(self.out)

    def _write(self) -> None:
        run_file.write(self._run, self.out)
