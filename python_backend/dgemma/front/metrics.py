"""The metrics of the front and of Triton, in one text.

Knows Prometheus' text format as far as it writes and joins it; knows nothing of what is measured.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections import Counter

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
)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(triton_url: str, requests: Counter[tuple[str, int]]) -> str:
    """Triton's metrics where it answers, and the front's own."""
    try:
        theirs = await asyncio.to_thread(_fetch, triton_url)
    except (OSError, ValueError):
        theirs = None
    return "".join([_ours(requests, theirs is not None), theirs or ""])


def _fetch(url: str) -> str:
    # Without a proxy: Triton is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_TIMEOUT_S) as response:
        text: str = response.read().decode()
    return text


def _ours(requests: Counter[tuple[str, int]], triton: bool) -> str:
    answered, up = FAMILIES
    lines = _head(answered)
    for (endpoint, status), count in sorted(requests.items()):
        labels = f'endpoint="{endpoint}",status="{status}"'
        lines.append(f"{answered.name}{{{labels}}} {count}")
    lines += [*_head(up), f"{up.name} {int(triton)}"]
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
