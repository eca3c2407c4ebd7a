"""Weighted fair queueing between tenants: whoever has had least for its weight goes next.

Start-time fair queueing (Goyal, Vin, Cheng 1996), with a turn, from one block border to the next,
in the place of a packet and rows in the place of its bytes. Knows nothing of slots or time.
A tenant's tag says what it has been charged: rows divided by its weight. A turn is charged in
advance with what it is expected to need, so that one tenant cannot take every free slot before its
first row is counted; what it really needs replaces that before the next decision.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic

from dgemma.scheduler.line import J, Line, may_run
from dgemma.scheduler.tenancy import Tenant


@dataclass(eq=False)
class _Account(Generic[J]):
    tenant: Tenant
    tag: float = 0.0
    line: Line[J] = field(default_factory=Line)
    running: int = 0
    ahead: float = 0.0  # rows charged in advance and not spent, of all its running jobs
    place: float | None = None  # the tag of its entry in the heap; others of its entries are void

    @property
    def had(self) -> float:
        """What it has really had for its weight."""
        return self.tag - self.ahead / self.tenant.weight

    @property
    def competes(self) -> bool:
        return bool(len(self.line)) and may_run(self.tenant, self.running)


@dataclass
class _Turn:
    """What a running job has been charged for."""

    rows_had: int
    reserved: float = 0.0  # its part of `ahead`


class FairQueue(Generic[J]):
    """See the module. Every decision costs O(log tenants + running jobs)."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[J]] = {}
        # The accounts that compete, lowest tag first: (tag, order of entry, account).
        self._heap: list[tuple[float, int, _Account[J]]] = []
        self._entries = self._size = 0
        self._now = 0.0  # the tag of the last turn that was given
        self._highest = 0.0  # what anybody has had for its weight, at most
        self._turns: dict[J, _Turn] = {}  # of the running jobs

    def __len__(self) -> int:
        return self._size

    def waiting(self, tenant: Tenant) -> int:
        account = self._accounts.get(tenant.name)
        return len(account.line) if account else 0

    def running(self, tenant: Tenant) -> int:
        account = self._accounts.get(tenant.name)
        return account.running if account else 0

    def push(self, job: J) -> None:
        self._charge_running()
        account = self._accounts.setdefault(job.tenant.name, _Account(job.tenant))
        account.tenant = job.tenant  # limits and weight may have changed
        account.line.push(job)
        self._size += 1
        self._rank(account)

    def remove(self, job: J) -> None:
        account = self._accounts[job.tenant.name]
        account.line.remove(job)
        self._size -= 1
        self._rank(account)

    def pop(self) -> J | None:
        if not self._size:
            return None
        self._charge_running()
        account = self._first()
        if account is None:
            return None
        self._now = max(self._now, account.tag)
        job = account.line.pop()
        self._size -= 1
        account.running += 1
        self._turns[job] = _Turn(job.rows_had)
        self._reserve(account, job)
        self._rank(account)
        return job

    def standing(self, job: J) -> float:
        self._charge_running()
        return self._accounts[job.tenant.name].had

    def border(self, job: J) -> bool:
        self._charge_running()
        account = self._accounts[job.tenant.name]
        self._settle(account, job)
        if yields := self._is_owed(account, job):
            del self._turns[job]
            account.running -= 1
            account.line.put_back(job)
            self._size += 1
        else:
            self._reserve(account, job)
        self._rank(account)
        return yields

    def end(self, job: J) -> None:
        self._charge_running()
        account = self._accounts[job.tenant.name]
        self._settle(account, job)
        del self._turns[job]
        account.running -= 1
        self._rank(account)

    def _is_owed(self, account: _Account[J], job: J) -> bool:
        """Whether somebody who waits has a better right to the slot of this job.

        Among its own tenant's, that is a job of a higher priority. Another tenant would still be
        behind after a turn, even had it been charged for encoding the context of this job again as
        well: with less, rows would be spent on contexts that change places.
        """
        first = self._first()
        if first is None or first is account or account.tag <= first.tag:
            return len(account.line) > 0 and account.line.first.priority > job.priority
        behind = first.tag + first.line.first.turn_rows / first.tenant.weight
        return behind + job.context_rows / account.tenant.weight <= account.tag

    def _first(self) -> _Account[J] | None:
        while self._heap:
            tag, _, account = self._heap[0]
            if tag == account.place:
                return account
            heapq.heappop(self._heap)
        return None

    def _rank(self, account: _Account[J]) -> None:
        """Give the account its place among those that compete, if it does."""
        if not account.competes:
            account.place = None
            return
        if account.place is None:
            # Who did not want the device saves nothing up. Where nobody else waits there is enough
            # for everybody, and what each has had so far counts no more.
            if self._first() is None:
                self._now = max(self._now, self._highest)
            account.tag = max(account.tag, self._now)
        if account.place != account.tag:
            account.place = account.tag
            self._entries += 1
            heapq.heappush(self._heap, (account.tag, self._entries, account))

    def _charge_running(self) -> None:
        """Charge what the running jobs have had since it was last of interest."""
        for job, turn in self._turns.items():
            if rows := job.rows_had - turn.rows_had:
                turn.rows_had = job.rows_had
                self._spend(self._accounts[job.tenant.name], turn, rows)

    def _spend(self, account: _Account[J], turn: _Turn, rows: int) -> None:
        foreseen = min(rows, turn.reserved)
        turn.reserved -= foreseen
        account.ahead -= foreseen
        if rows > foreseen:
            self._charge(account, rows - foreseen)
            self._rank(account)
        self._highest = max(self._highest, account.had)

    def _reserve(self, account: _Account[J], job: J) -> None:
        self._turns[job].reserved = job.turn_rows
        account.ahead += job.turn_rows
        self._charge(account, job.turn_rows)

    def _settle(self, account: _Account[J], job: J) -> None:
        turn = self._turns[job]
        left, turn.reserved = turn.reserved, 0.0
        account.ahead -= left
        account.tag -= left / account.tenant.weight

    def _charge(self, account: _Account[J], rows: float) -> None:
        account.tag += rows / account.tenant.weight
