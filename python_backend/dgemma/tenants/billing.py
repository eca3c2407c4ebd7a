"""What a request is charged with when it has ended.

Knows what counts as used; knows nothing of where that is kept.
"""

from __future__ import annotations

from datetime import UTC, datetime

from dgemma.scheduler.events import Finished
from dgemma.tenants.usage import Entry

# What was asked for could not be had: no room, no quota, no time, or not within the limits.
_REJECTED = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"})


def entry(at: datetime, tenant: str, finished: Finished) -> Entry:
    """The record of a request.

    Only what was done for it counts: rejected and failed ones have no tokens, nor have those that
    were cancelled while they waited.
    """
    usage, error = finished.usage, finished.error
    outcome, tokens = finished.finish_reason, (usage.prompt_tokens, usage.completion_tokens)
    if error is not None:
        outcome = "rejected" if error.grpc_code in _REJECTED else "failed"
    if error is not None or not (usage.passes or usage.completion_tokens):
        tokens = (0, 0)
    return Entry(at.astimezone(UTC), tenant, outcome, *tokens, usage.service_units)
