"""Whether a request may wait for a slot: quotas, the length of the queue and its deadline.

Knows tenants' limits and what passes take; knows nothing of who goes first. Whoever is let in can
be run: a slot has room for the longest request, so its KV is reserved with it.
"""

from __future__ import annotations

from dgemma.errors import DeadlineExceeded, InvalidRequest, ResourceExhausted
from dgemma.request import Request
from dgemma.scheduler.line import Queue
from dgemma.scheduler.pace import Pace
from dgemma.scheduler.prefix_cache import PrefixCache
from dgemma.scheduler.sequence import Sequence
from dgemma.scheduler.tenancy import Tenant
from dgemma.scheduler.token_bucket import TokenBucket

_SOONEST_S = 0.1  # nobody is told to come back earlier
_FIELD = "sampling_parameters"


class Admission:
    """Lets requests in or raises; `settle` takes note of each one's end."""

    def __init__(
        self, max_queued: int | None, queue: Queue[Sequence], pace: Pace, cache: PrefixCache | None
    ) -> None:
        self._max_queued, self._queue, self._pace, self._cache = max_queued, queue, pace, cache
        self._buckets: dict[str, TokenBucket] = {}

    def admit(self, sequence: Sequence, free_slots: int) -> None:
        """Reserve what the request may use.

        Raises InvalidRequest for what the tenant can never have, ResourceExhausted for what it
        cannot have now, DeadlineExceeded where the time would not do.
        """
        request, limits = sequence.request, sequence.tenant.limits
        tokens = _most_tokens(request)
        if not limits.min_priority <= sequence.priority <= limits.max_priority:
            raise InvalidRequest(
                f"{_FIELD}.priority",
                f"got {sequence.priority}; allowed for tenant {sequence.tenant.name}: "
                f"{limits.min_priority} to {limits.max_priority}",
            )
        for limit, name in (
            (limits.max_context, "max_context"),
            (limits.tokens_per_minute, "tokens_per_minute"),
        ):
            if limit is not None and tokens > limit:
                raise InvalidRequest(
                    f"{_FIELD}.max_new_tokens",
                    f"{len(request.prompt)} prompt tokens + {request.sampling.max_new_tokens} new "
                    f"tokens exceed {name} {limit} of tenant {sequence.tenant.name}; shorten the "
                    "prompt or ask for fewer tokens",
                )
        if not self.in_time(sequence):
            raise late(sequence, "it cannot be met")
        self._check_queue(sequence.tenant, free_slots)
        if bucket := self._bucket(sequence.tenant):
            now = self._pace.clock()
            if wait := bucket.wait(tokens, now):
                raise ResourceExhausted(
                    f"tenant {sequence.tenant.name} has used its tokens_per_minute "
                    f"{bucket.per_minute}; this request may need {tokens}",
                    max(_SOONEST_S, wait),
                )
            bucket.take(tokens, now)

    def settle(self, sequence: Sequence) -> None:
        """Give back what an ended request has reserved and not used."""
        if bucket := self._bucket(sequence.tenant):
            prompt = len(sequence.request.prompt) if sequence.bill.passes else 0
            used = prompt + sequence.answer.completion_tokens
            bucket.give_back(_most_tokens(sequence.request) - used, self._pace.clock())

    def charge(self, tenant: Tenant, tokens: float) -> None:
        """Take note of what the tenant used of its quota before this process began."""
        if bucket := self._bucket(tenant):
            bucket.take(tokens, self._pace.clock())

    def in_time(self, sequence: Sequence) -> bool:
        """Whether the deadline leaves the time that a request needs at least: the rest of its
        prompt and one canvas, as canvases go at present.
        """
        waits = sequence.slot is None
        known = self._cache.known(sequence.chain) if waits and self._cache else 0
        needed = sequence.least_passes(known) * self._pace.pass_s
        return sequence.deadline is None or self._pace.clock() + needed <= sequence.deadline

    def _check_queue(self, tenant: Tenant, free_slots: int) -> None:
        """Who finds a free slot does not wait, also where it is given only before the next pass."""
        limits, queued = tenant.limits, len(self._queue)
        if self._max_queued is not None and queued >= free_slots + self._max_queued:
            raise ResourceExhausted(
                f"{queued - free_slots} requests wait already, of {self._max_queued} that may",
                self._soon_s,
            )
        waiting = self._queue.waiting(tenant)
        room = max(0, free_slots - (queued - waiting))  # others come first
        if limits.max_running is not None:
            room = min(room, max(0, limits.max_running - self._queue.running(tenant)))
        if limits.max_queued is not None and waiting >= room + limits.max_queued:
            raise ResourceExhausted(
                f"{waiting - room} requests of tenant {tenant.name} wait already, of "
                f"{limits.max_queued} that may",
                self._soon_s,
            )

    @property
    def _soon_s(self) -> float:
        """When to ask again where others have to go first: after a canvas."""
        return max(_SOONEST_S, self._pace.canvas_s)

    def _bucket(self, tenant: Tenant) -> TokenBucket | None:
        limit, now = tenant.limits.tokens_per_minute, self._pace.clock()
        if limit is None:
            self._buckets.pop(tenant.name, None)
            return None
        bucket = self._buckets.setdefault(tenant.name, TokenBucket(limit, now))
        if bucket.per_minute != limit:
            bucket.resize(limit, now)
        return bucket


def late(sequence: Sequence, why: str) -> DeadlineExceeded:
    """The end of a request whose answer would come too late."""
    return DeadlineExceeded(
        f"{_FIELD}.deadline_s: {sequence.request.deadline_s:g} s from its arrival was the "
        f"deadline; {why}; allow more time, or try again when there is less to do"
    )


def _most_tokens(request: Request) -> int:
    return len(request.prompt) + request.sampling.max_new_tokens
