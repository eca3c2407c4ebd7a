"""A real Prometheus that scrapes pods, and what it answers.

Knows its configuration and its HTTP interface; knows nothing of what is asked.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helm.promtool import tool

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Scraped:
    """One pod, with the labels that the operator's ServiceMonitor gives it."""

    address: str  # host:port
    path: str
    labels: Mapping[str, str]


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[float]:
        """The values of all series that an expression has at present."""
        return [
            float(found["value"][1]) for found in self._get("query", query=expression)["result"]
        ]

    def wait_for(self, expression: str) -> None:
        """Until it has a value."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.query(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.1)

    def rules(self) -> list[dict[str, Any]]:
        """Those that are loaded, with their health."""
        groups = self._get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}?{query}", timeout=20) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


@contextmanager
def scraping(
    pods: Iterable[Scraped], rule_files: Iterable[Path], directory: Path, every: str = "500ms"
) -> Iterator[Prometheus]:
    """A Prometheus on a free port of the loopback, gone after the block."""
    program = tool("prometheus")
    directory.mkdir(parents=True, exist_ok=True)
    jobs = [
        {
            "job_name": f"pod-{number}",
            "metrics_path": pod.path,
            "static_configs": [{"targets": [pod.address], "labels": dict(pod.labels)}],
        }
        for number, pod in enumerate(pods)
    ]
    configuration = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [str(path) for path in rule_files],
        "scrape_configs": jobs,
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_ready(f"http://{address}", process, directory / "log")
        yield Prometheus(f"http://{address}")
    finally:
        process.kill()
        process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
