"""The metrics of the front and of Triton, in one text.

Knows Prometheus' text format as far as it writes and joins it; knows nothing of what is measured.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from dgemma.metrics.families import Family

_TIMEOUT_S = 2.0
FAMILIES = (
    Family(
        "dgemma_http_requests_total",
        "counter",
        "HTTP requests that were answered, by the endpoint's path, or other, and status",
        ("endpoint", "status"),
    ),
    Family("dgemma_http_triton_metrics_up", "gauge", "1 where Triton's metrics are in this text"),
    Family("dgemma_ready", "gauge", "1 where /v1/health/ready says so"),
    Family(
        "dgemma_starts_total",
        "counter",
        "How often the supervisor has started a part, triton or front; 1 where it never failed",
        ("part",),
    ),
)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Own:
    """What the front knows by itself."""

    requests: Mapping[tuple[str, int], int]  # by endpoint and status
    ready: bool
    starts: Mapping[str, int]  # by part; empty without a supervisor


async def of_triton(url: str) -> str | None:
    """Triton's metrics; None where it does not answer."""
    try:
        return await asyncio.to_thread(_fetch, url)
    except (OSError, ValueError):
        return None


def joined(own: Own, theirs: str | None) -> str:
    """The front's metrics, and behind them Triton's."""
    return _ours(own, theirs is not None) + (theirs or "")


def _fetch(url: str) -> str:
    # Without a proxy: Triton is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_TIMEOUT_S) as response:
        text: str = response.read().decode()
    return text


def _ours(own: Own, triton: bool) -> str:
    answered, up, ready, starts = FAMILIES
    lines = _head(answered)
    for (endpoint, status), count in sorted(own.requests.items()):
        labels = f'endpoint="{endpoint}",status="{status}"'
        lines.append(f"{answered.name}{{{labels}}} {count}")
    lines += [*_head(up), f"{up.name} {int(triton)}"]
    lines += [*_head(ready), f"{ready.name} {int(own.ready)}"]
    lines += _head(starts)
    lines += [f'{starts.name}{{part="{part}"}} {count}' for part, count in own.starts.items()]
    return "\n".join(lines) + "\n"


def _head(family: Family) -> list[str]:
    return [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]


def label(text: str, metric: str, name: str) -> str | None:
    """The value of a label of the first sample of `metric`."""
    for line in text.splitlines():
        if line.startswith(metric + "{"):
            for pair in line[len(metric) + 1 : line.rindex("}")].split('",'):
                key, _, value = pair.partition('="')
                if key == name:
                    return value.rstrip('"')
    return None
