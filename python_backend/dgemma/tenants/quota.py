"""What of a quota of tokens per minute was used before this process began.

Knows a ledger's last minute; knows nothing of how a quota refills.
"""

from __future__ import annotations

from datetime import datetime

from dgemma.tenants.days import Days

MINUTE_S = 60.0


def used_lately(days: Days, now: datetime) -> dict[str, float]:
    """Tokens by tenant that count still: all of those used just now, none of a minute ago, because
    the quota has refilled since.
    """
    used: dict[str, float] = {}
    if days.records(now.date()).exists():
        for entry in days.entries(now.date()):
            age = min(max(0.0, (now - entry.at).total_seconds()), MINUTE_S)
            tokens = entry.prompt_tokens + entry.completion_tokens
            used[entry.tenant] = used.get(entry.tenant, 0.0) + tokens * (1 - age / MINUTE_S)
    return used
