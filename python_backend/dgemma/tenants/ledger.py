"""Writes down what every request has cost, so that it outlives the process.

Knows the writer thread and when it makes sure; the formats are `dgemma.tenants.days`'s. A record is
handed to the operating system at once and is on the disk about a second later: what ends the
process loses what was not handed over, what ends the machine a second of records.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import takewhile
from pathlib import Path
from queue import Empty, SimpleQueue

from dgemma.errors import ConfigurationError
from dgemma.scheduler.events import Finished
from dgemma.tenants.billing import entry
from dgemma.tenants.days import DayFile, Days
from dgemma.tenants.quota import used_lately
from dgemma.tenants.usage import Entry

logger = logging.getLogger(__name__)

SYNC_EVERY_S = 1.0
MOST_PENDING = 200_000  # records kept in memory while the disk is full or gone


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """A directory of one server; `record` may be called from any thread and never waits."""

    def __init__(self, directory: Path, now: Callable[[], datetime] = _now) -> None:
        """Goes on where the last server stopped, however it ended.

        Raises ConfigurationError where the directory cannot be written, or another server does.
        """
        self._days, self._now = Days(directory), now
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._day = self._days.first_open(now().date())
            self._file = DayFile(self._days.records(self._day))
            for day in self._days.all():
                if day < self._day:
                    self._days.close(day)
        except BlockingIOError:
            raise ConfigurationError(
                f"DGEMMA_LEDGER: {directory} is in use by another server; every server needs a "
                "ledger of its own"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"DGEMMA_LEDGER: {directory} cannot be written: {error.strerror}; give the service "
                "a directory of its own"
            ) from None
        known = self._days.usage().values()
        logger.info("%s: %d requests are written down", directory, sum(t.requests for t in known))
        self._pending: list[Entry] = []
        self._rejected: Counter[str] = Counter()  # requests by tenant, not yet pending
        self._failing = False
        self._queue: SimpleQueue[tuple[datetime, str, Finished] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def record(self, tenant: str, finished: Finished) -> None:
        """Write down that a request of the tenant has ended."""
        self._queue.put((self._now(), tenant, finished))

    def used_lately(self) -> dict[str, float]:
        """Tokens by tenant that still count against a quota of tokens per minute."""
        return used_lately(self._days, self._now())

    def close(self) -> None:
        """Write all that was recorded, make sure of it, and end the thread."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()
        self._lock.close()

    # Everything below runs on the writer thread.

    def _run(self) -> None:
        sync_at, more = 0.0, True
        while more:
            waits = self._pending or self._rejected or self._file.dirty
            more = self._take(max(0.0, sync_at - time.monotonic()) if waits else None)
            due = not more or time.monotonic() >= sync_at
            if due:
                self._count_rejected()
            try:
                self._write()
                if due:
                    self._file.sync()
                    sync_at = time.monotonic() + SYNC_EVERY_S
            except OSError as error:
                self._keep(error)
                sync_at = time.monotonic() + SYNC_EVERY_S
            else:
                self._failing = False
        if self._pending:
            logger.critical("%d records of usage are lost", len(self._pending))

    def _take(self, timeout_s: float | None) -> bool:
        """Add what was recorded, having waited for some; False once nothing more can come."""
        try:
            record = self._queue.get(timeout=timeout_s)
            while record is not None:
                ended = entry(*record)
                if ended.outcome == "rejected" and not ended.service_units:
                    self._rejected[ended.tenant] += 1
                else:
                    self._pending.append(ended)
                record = self._queue.get_nowait()
        except Empty:
            return True
        return False

    def _count_rejected(self) -> None:
        """One record a second for each tenant: who floods the service may not fill the disk."""
        for tenant, requests in self._rejected.items():
            self._pending.append(Entry(self._now(), tenant, "rejected", 0, 0, 0, requests))
        self._rejected.clear()

    def _write(self) -> None:
        """Append what is pending, each record to its day; what OSError interrupts stays pending."""
        while self._pending:
            if (day := self._pending[0].at.date()) > self._day:
                self._turn_to(day)
            entries = list(takewhile(lambda pending: pending.at.date() <= self._day, self._pending))
            self._file.append(entries)
            del self._pending[: len(entries)]

    def _turn_to(self, day: date) -> None:
        self._file.sync()
        over, file = self._day, DayFile(self._days.records(day))
        self._file.close()
        self._day, self._file = day, file
        try:
            self._days.close(over)
        except OSError as error:
            logger.error("the records of %s are summed at the next start: %s", over, error)

    def _keep(self, error: OSError) -> None:
        if not self._failing:
            logger.error("usage cannot be written down, and is tried again: %s", error)
            self._failing = True
        if (excess := len(self._pending) - MOST_PENDING) > 0:
            del self._pending[:excess]
            logger.critical("%d records of usage are lost", excess)
