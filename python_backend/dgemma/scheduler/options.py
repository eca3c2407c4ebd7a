"""What an operator decides about the scheduler.

Knows no variable of the environment; `dgemma.settings` does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Holds for one server process."""

    fair: bool = True  # between tenants; else first come, first served
    prefill_rows: int = 4  # of a pass, which encode prompts beside the canvases
    prefix_cache_bytes: int = 0  # of K/V kept for other requests; 0 keeps none
    max_queued: int | None = None  # requests that wait, of all tenants together; None: any number
