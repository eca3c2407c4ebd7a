"""One fault under load: who is answered, when the service says that it is not ready, what is left.

Knows what is promised of every fault; which faults there are is told by others.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.accept.chaos_load import CLIENTS, Known, Load, Outcome, known
from tests.accept.chaos_service import Held, Readiness, Service, started, within
from tests.accept.main_job import Line

ENDED_WITHIN_S = 5.0
NOT_READY_WITHIN_S = 2.0
READY_AGAIN_S = 10.0  # besides the time that a start takes
SETTLES_S = 15.0  # connections that were closed are noticed
WARM = 10  # requests of each client, more or less, before a fault and after it
SEED = 41


@dataclass(frozen=True)
class Subject:
    """A service, requests with known answers, and what it held before any fault, without load."""

    service: Service
    requests: list[Known]
    before: Held

    @classmethod
    def of(cls, service: Service) -> Subject:
        requests = known(service)
        with Load(service, requests, SEED) as load:
            within(60, lambda: load.answered_over_both(0.0, WARM * CLIENTS))
        settled = lowest(service)
        return cls(service, requests, settled)


def lowest(service: Service, seconds: float = 3.0) -> Held:
    """What it holds once closed connections are noticed."""
    until, found = time.monotonic() + seconds, service.held()
    while time.monotonic() < until:
        time.sleep(0.1)
        held = service.held()
        if sum(held.files.values()) < sum(found.files.values()):
            found = held
    return found


@dataclass(frozen=True)
class Fault:
    """What takes the service away; `strike` does it."""

    what: str
    strike: Callable[[Service], None]


def send(role: str, number: int) -> Callable[[Service], None]:
    """A signal for a process of the service."""
    return lambda service: os.kill(service.pids[role], number)


def suffered(subject: Subject, fault: Fault) -> Iterator[Line]:
    """Lines about the fault."""
    service = subject.service
    limit = service.start_s + READY_AGAIN_S
    with Load(service, subject.requests, SEED) as load, Readiness(service) as readiness:
        within(60, lambda: load.answered_over_both(0.0, WARM * CLIENTS))
        struck = time.monotonic()
        fault.strike(service)
        within(limit, lambda: readiness.first(False, struck) is not None)
        away = readiness.first(False, struck)
        within(limit + 5, lambda: readiness.first(True, away or struck) is not None)
        again = readiness.first(True, away or struck)
        right = within(60, lambda: load.answered_over_both(again or struck, WARM * CLIENTS))
    yield in_flight(fault.what, load.outcomes, struck, again)
    yield Line(
        "  not ready; ready again",
        f"after {_seconds(away, struck)}; after {_seconds(again, struck)}",
        f"<= {NOT_READY_WITHIN_S:g} s; <= {limit:.1f} s",
        away is not None
        and away - struck <= NOT_READY_WITHIN_S
        and again is not None
        and again - struck <= limit,
    )
    yield afterwards(load.outcomes, again or struck, right)
    yield nothing_more(subject)


def in_flight(what: str, outcomes: list[Outcome], struck: float, again: float | None) -> Line:
    """That everybody heard something soon: who was in flight, and who asked in the outage."""
    until = again or time.monotonic()
    asked = [o for o in outcomes if o.ended > struck and o.began < max(until, struck + 0.001)]
    caught = [o for o in asked if o.began < struck]
    longest = max((o.ended - max(o.began, struck) for o in asked), default=0.0)
    errors = sum(bool(o.error) for o in caught)
    return Line(
        what,
        f"{len(caught)} in flight: {errors} errors, {len(caught) - errors} answers; "
        f"{len(asked) - len(caught)} asked later; the last after {longest:.1f} s",
        f"<= {ENDED_WITHIN_S:g} s",
        bool(caught) and longest <= ENDED_WITHIN_S,
    )


def afterwards(outcomes: list[Outcome], since: float, answered: bool) -> Line:
    later = [o for o in outcomes if o.began >= since]
    wrong = sum(not o.error and not o.right for o in outcomes)
    errors = [f"{o.over}: {o.error}" for o in later if o.error]
    return Line(
        "  afterwards",
        f"{len(later) - len(errors)} answers, {len(errors)} errors"
        + (f" ({errors[0]})" if errors else "")
        + f"; {wrong} of all answers wrong",
        "answers over gRPC and HTTP, none wrong",
        answered and not wrong and not errors,
    )


def nothing_more(subject: Subject) -> Line:
    """That it holds what it held before."""
    within(SETTLES_S, lambda: not subject.service.held().beyond(subject.before))
    more = subject.service.held().beyond(subject.before)
    return Line("  more than before", ", ".join(more) or "nothing", "nothing", not more)


def nobody_there(service: Service) -> Line:
    """That no slot and no place in the queue is taken."""
    names = ("num_requests_running", "num_requests_waiting")

    def busy() -> float:
        return sum(service.metric(name) for name in names)

    within(10, lambda: busy() == 0)
    return Line("  slots and places still taken", f"{busy():g}", "0", busy() == 0)


def ending(subject: Subject) -> Iterator[Line]:
    """Lines about a SIGTERM under load."""
    service = subject.service
    _ = service.pids
    with Load(service, subject.requests, SEED) as load:
        within(60, lambda: load.answered_over_both(0.0, CLIENTS // 2))
        asked = time.monotonic()
        os.kill(service.serve.process.pid, signal.SIGTERM)
        code = service.serve.exit_code()
        took = time.monotonic() - asked
    caught = [o for o in load.outcomes if o.began < asked < o.ended]
    errors = sum(bool(o.error) for o in caught)
    left = service.left()
    yield Line(
        "SIGTERM at the end",
        f"code {code} after {took:.1f} s; {len(caught)} in flight: {errors} errors; left: "
        + (", ".join(left) or "nothing"),
        "code 0, all answered, nothing left",
        code == 0 and not left and not errors,
    )


def _seconds(moment: float | None, since: float) -> str:
    return "never" if moment is None else f"{moment - since:.2f} s"


def kills(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Processes that die, and one that stands still."""
    faults = [
        Fault("the stub is killed", send("stub", signal.SIGKILL)),
        Fault("Triton is killed", send("triton", signal.SIGKILL)),
        Fault("the front is killed", send("front", signal.SIGKILL)),
        Fault("the stub is stopped", send("stub", signal.SIGSTOP)),
    ]
    with (
        tempfile.TemporaryDirectory() as scratch,
        started(engine, checkpoint, Path(scratch, "log")) as service,
    ):
        subject = Subject.of(service)
        yield Line("start, until it is ready", f"{service.start_s:.1f} s", "")
        for _ in range(rounds):
            for fault in faults:
                yield from suffered(subject, fault)
        yield from ending(subject)
