"""What the scheduler knows of who asks: a name, a share of the device and limits.

Knows nothing of keys, files or usage kept on disk. Every limit holds for one server process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one tenant may have at a time; None is no limit of the tenant's own."""

    max_running: int | None = None  # requests in slots
    max_queued: int | None = None  # requests that wait for a slot; 0 never waits
    tokens_per_minute: int | None = None  # prompt and answer tokens
    max_context: int | None = None  # tokens of one request, prompt and answer together
    # The priorities that its requests may ask for; of one tenant's requests, the higher go first.
    min_priority: int = 0
    max_priority: int = 0


@dataclass(frozen=True)
class Tenant:
    """Backlogged tenants get the device's time in proportion to their weights."""

    name: str
    weight: float = 1.0
    limits: Limits = Limits()


# Whoever asks where no tenants are configured.
EVERYONE = Tenant("default")
# Whoever asks whether the engine runs, with the least of requests: no usage is kept of it.
PROBE = Tenant("probe")
