"""Whether the service answers: by a real inference of one canvas, or by what it answered just now.

Knows how long a finding holds; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

from dgemma.client_errors import ClientError, Overloaded, Unauthenticated
from dgemma.front.answers import Asks
from dgemma.front.triton import Question

logger = logging.getLogger(__name__)

# With a full queue a probe is refused; until then an answer to others shows that the engine runs.
_BUSY_S = 10.0
PROBE_ID = "readiness"
ONE_CANVAS = {"max_new_tokens": 1, "max_denoising_steps": 1, "seed": 0}


class Judge(Protocol):
    """Says whether requests should be sent here."""

    def answered(self) -> None:
        """The service has answered something, to whomever."""

    def close(self, reason: str) -> None:
        """From now on it is not ready."""

    async def trouble(self, service: Asks) -> str | None:
        """Why it is not ready; None where it is."""
        ...


class Readiness:
    """Many may ask at the same time: one inference runs for all of them."""

    def __init__(
        self,
        *,
        timeout_s: float,
        cache_s: float,
        api_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s, self._cache_s, self._clock = timeout_s, cache_s, clock
        self._authorization = api_key and f"Bearer {api_key}"
        self._answered_at = self._failed_at = -float("inf")
        self._reason = "nothing has been answered yet"
        self._probe: asyncio.Task[None] | None = None
        self._closed: str | None = None

    def answered(self) -> None:
        """The service has answered something, to whomever."""
        self._answered_at = self._clock()

    def close(self, reason: str) -> None:
        """From now on it is not ready."""
        self._closed = reason

    async def trouble(self, service: Asks) -> str | None:
        """Why it is not ready; None where it is."""
        if self._closed is not None:
            return self._closed
        now = self._clock()
        if now - self._answered_at <= self._cache_s:
            return None
        if now - self._failed_at <= self._cache_s:
            return self._reason
        if self._probe is None:
            self._probe = asyncio.create_task(self._ask(service))
            self._probe.add_done_callback(self._forget)
        await asyncio.shield(self._probe)
        return None if self._answered_at >= self._failed_at else self._reason

    def _forget(self, _: asyncio.Task[None]) -> None:
        self._probe = None

    async def _ask(self, service: Asks) -> None:
        question = Question("x", ONE_CANVAS, "none", self._timeout_s, PROBE_ID, self._authorization)
        try:
            async with aclosing(service.ask(question)) as updates:
                async for _ in updates:
                    pass
        except Overloaded as error:
            if self._clock() - self._answered_at > _BUSY_S:
                self._fail(error.message)
            else:
                self._failed_at = -float("inf")
        except Unauthenticated as error:
            hint = "set DGEMMA_PROBE_API_KEY to the key of a tenant that may be asked as"
            self._fail(f"{error.message}; for readiness, {hint}")
        except ClientError as error:
            self._fail(error.message)
        else:
            self.answered()

    def _fail(self, reason: str) -> None:
        known = reason == self._reason and self._failed_at >= self._answered_at
        self._reason, self._failed_at = reason, self._clock()
        if not known:
            logger.warning("not ready: %s", reason)
