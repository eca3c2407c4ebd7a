"""A page of metrics as Prometheus' own parser reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.request import urlopen

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dgemma.triton_server.server import TritonServer
from tests.triton.servers import wait_for


@dataclass(frozen=True)
class Page:
    """Families in their order."""

    text: str
    families: tuple[Metric, ...]

    @classmethod
    def of(cls, text: str) -> Page:
        return cls(text, tuple(text_string_to_metric_families(text)))

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
