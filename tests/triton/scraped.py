"""A page of metrics as Prometheus' own parser reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.request import urlopen

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dgemma.metrics.metrics import EVERY_S
from dgemma.triton_server.server import TritonServer
from tests.triton.servers import wait_for

STILL_S = 2 * EVERY_S  # more than what is looked at now and then needs to be seen


@dataclass(frozen=True)
class Page:
    """Families in their order."""

    text: str
    families: tuple[Metric, ...]

    @classmethod
    def of(cls, text: str) -> Page:
        return cls(text, tuple(text_string_to_metric_families(text)))

    def ours(self) -> list[str]:
        """The lines of samples that are not Triton's own."""
        return [line for line in self.text.splitlines() if not line.startswith(("nv_", "#"))]

    def labels(self, sample: str) -> Iterator[dict[str, str]]:
        """Of each sample of that name."""
        return (s.labels for family in self.families for s in family.samples if s.name == sample)

    def total(self, sample: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels; 0 where there are none."""
        return sum(
            s.value
            for family in self.families
            for s in family.samples
            if s.name == sample and labels.items() <= s.labels.items()
        )


def scrape(server: TritonServer) -> Page:
    with urlopen(server.metrics_url) as reply:
        return Page.of(reply.read().decode())


def scrape_until(server: TritonServer, requests: float, outcome: str) -> Page:
    """The page once so many requests have ended like that."""
    pages: list[Page] = []

    def ended() -> bool:
        pages[:] = [scrape(server)]
        return pages[0].total("dgemma_requests_total", outcome=outcome) >= requests

    wait_for(f"{requests} requests in the metrics: {outcome}", ended)
    return pages[0]


def scrape_settled(server: TritonServer) -> Page:
    """The page once it has stood still: what ended earlier is in it, for nothing runs any more."""
    pages = [scrape(server)]
    since = time.monotonic()

    def still() -> bool:
        nonlocal since
        page = scrape(server)
        if page.ours() != pages[0].ours():
            pages[:], since = [page], time.monotonic()
        return time.monotonic() - since > STILL_S

    wait_for("the metrics to stand still", still)
    return pages[0]
