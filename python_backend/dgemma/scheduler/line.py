"""What a queue is to the scheduler, and the plain one: first come, first served.

Knows jobs, tenants and the order in which they wait; knows nothing of slots, passes or time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, Protocol, TypeVar

from dgemma.scheduler.tenancy import Tenant


class Job(Protocol):
    """Something that waits for a slot; equal only to itself."""

    @property
    def tenant(self) -> Tenant: ...
    @property
    def priority(self) -> int: ...
    @property
    def rows_had(self) -> int:
        """Rows that passes have had of it so far; what a queue charges its tenant for."""
        ...

    @property
    def turn_rows(self) -> float:
        """Rows that it is expected to need up to its next block border."""
        ...

    @property
    def context_rows(self) -> int:
        """Rows that encode all it stands on again, which giving its slot up will cost."""
        ...


J = TypeVar("J", bound=Job)


class Queue(Protocol[J]):
    """Decides which job gets a slot, and at a block border whether it keeps it.

    Work is counted in rows: what a device spends on a job is rows × passes, prefill included.
    """

    def __len__(self) -> int:
        """Jobs that wait."""
        ...

    def waiting(self, tenant: Tenant) -> int: ...
    def running(self, tenant: Tenant) -> int: ...
    def push(self, job: J) -> None: ...
    def remove(self, job: J) -> None:
        """Forget a job that waits."""
        ...

    def pop(self) -> J | None:
        """The job that gets a free slot; None where none waits that may run."""
        ...

    def standing(self, job: J) -> float:
        """What the tenant of a running job has had for its weight; who has least goes first."""
        ...

    def border(self, job: J) -> bool:
        """A block of a running job has ended; whether it waits again, for another's sake.

        To be asked when no slot is free.
        """
        ...

    def end(self, job: J) -> None:
        """A running job needs no slot any more."""
        ...


class Line(Generic[J]):
    """Jobs that wait: the higher priorities first, each in order of arrival."""

    def __init__(self) -> None:
        self._jobs: dict[int, OrderedDict[J, None]] = {}  # by priority; none of them is empty

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def push(self, job: J) -> None:
        self._jobs.setdefault(job.priority, OrderedDict())[job] = None

    def put_back(self, job: J) -> None:
        """Before all others of its priority."""
        self.push(job)
        self._jobs[job.priority].move_to_end(job, last=False)

    def remove(self, job: J) -> None:
        jobs = self._jobs[job.priority]
        del jobs[job]
        if not jobs:
            del self._jobs[job.priority]

    @property
    def first(self) -> J:
        return next(iter(self._jobs[max(self._jobs)]))

    def pop(self) -> J:
        job = self.first
        self.remove(job)
        return job


def may_run(tenant: Tenant, running: int) -> bool:
    """Whether a tenant with so many running jobs may have one more."""
    return tenant.limits.max_running is None or running < tenant.limits.max_running


class ArrivalQueue(Generic[J]):
    """First come, first served, whoever comes and whatever it costs. Nobody yields."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[J, None] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._running: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def waiting(self, tenant: Tenant) -> int:
        return self._waiting[tenant.name]

    def running(self, tenant: Tenant) -> int:
        return self._running[tenant.name]

    def push(self, job: J) -> None:
        self._jobs[job] = None
        self._waiting[job.tenant.name] += 1

    def remove(self, job: J) -> None:
        del self._jobs[job]
        self._waiting[job.tenant.name] -= 1

    def pop(self) -> J | None:
        for job in self._jobs:
            if may_run(job.tenant, self._running[job.tenant.name]):
                self.remove(job)
                self._running[job.tenant.name] += 1
                return job
        return None

    def standing(self, job: J) -> float:
        return 0.0

    def border(self, job: J) -> bool:
        return False

    def end(self, job: J) -> None:
        self._running[job.tenant.name] -= 1
