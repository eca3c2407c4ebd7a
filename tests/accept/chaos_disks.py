"""File systems without room, under load: that of the models and the ledger, and shared memory.

Knows what fills them and what has to be there once there is room; both are mounted for the test
alone, and where that is not allowed nothing is run.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dgemma.client import Client
from dgemma.client_errors import ClientError
from dgemma.tenants.days import Days
from dgemma.triton_server import shared_memory
from tests.accept.chaos_faults import (
    ENDED_WITHIN_S,
    READY_AGAIN_S,
    SEED,
    WARM,
    Fault,
    Subject,
    afterwards,
    ending,
    in_flight,
    nothing_more,
    send,
    suffered,
)
from tests.accept.chaos_load import CLIENTS, Load
from tests.accept.chaos_mounts import Mounts, filled, free_bytes, of_size
from tests.accept.chaos_service import Readiness, Service, started, within
from tests.accept.main_job import Line

DISK_MIB = 16
FULL_S = 5.0
WRITTEN_WITHIN_S = 5.0
LARGE_MIB = 3
AFTER_S = 0.2  # until the next one is asked for
_NOT_RUN = Line("a full file system", "not run: this process may not mount one", "")


def full_disk(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """No room where models, ledger and scratch files are, and processes to be started again."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory() as disk,
        of_size(Path(disk), DISK_MIB) as mounted,
    ):
        if not mounted:
            yield _NOT_RUN
            return
        store, ledger, temporary = (Path(disk, name) for name in ("cache", "ledger", "tmp"))
        temporary.mkdir()
        shutil.copytree(engine, store / "engines" / "fp32")
        environment = {
            "NIM_MODEL_PATH": "",
            "NIM_CACHE_PATH": str(store),
            "DGEMMA_LEDGER": str(ledger),
            "TMPDIR": str(temporary),
        }
        with started(engine, checkpoint, Path(scratch, "log"), environment) as service:
            subject = Subject.of(service)
            for _ in range(rounds):
                yield from _goes_on(subject, Path(disk), ledger)
                for role in ("front", "stub"):
                    with filled(Path(disk)):
                        what = f"the {role} is killed while the disk is full"
                        yield from suffered(subject, Fault(what, send(role, signal.SIGKILL)))
            yield from ending(subject)


def _goes_on(subject: Subject, disk: Path, ledger: Path) -> Iterator[Line]:
    """Lines about a full disk that nobody who asks notices, and about what was to be written."""
    before = _records(ledger)
    with Load(subject.service, subject.requests, SEED) as load:
        within(60, lambda: load.answered_over_both(0.0, WARM * CLIENTS))
        with filled(disk), Readiness(subject.service) as readiness:
            struck, room = time.monotonic(), free_bytes(disk)
            time.sleep(FULL_S)
            right = within(60, lambda: load.answered_over_both(struck, WARM * CLIENTS))
            missing = load.answered() - (_records(ledger) - before)
    away = readiness.first(False, struck)
    yield in_flight(f"the disk is full ({room} bytes of room)", load.outcomes, struck, None)
    yield Line("  not ready meanwhile", "never" if away is None else "once", "never", away is None)
    yield afterwards(load.outcomes, struck, right)
    asked = len(load.outcomes)
    within(WRITTEN_WITHIN_S, lambda: _records(ledger) - before == asked)
    written = _records(ledger) - before
    yield Line(
        "  usage, once there is room",
        f"{written} records, of which {missing} could not be written before",
        f"{asked}, and some of them late",
        written == asked and missing > 0,
    )
    yield nothing_more(subject)


def _records(ledger: Path) -> int:
    return sum(totals.requests for totals in Days(ledger).usage().values())


def full_shared_memory(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """No room where Triton and its stub exchange tensors."""
    if not Mounts.allowed:
        yield _NOT_RUN
        return
    with (
        tempfile.TemporaryDirectory() as scratch,
        started(engine, checkpoint, Path(scratch, "log")) as service,
    ):
        subject = Subject.of(service)
        for _ in range(rounds):
            yield from _without_shared_memory(subject)
        yield from ending(subject)


def _without_shared_memory(subject: Subject) -> Iterator[Line]:
    service = subject.service
    limit = service.start_s + READY_AGAIN_S
    with Load(service, subject.requests, SEED) as load, Readiness(service) as readiness:
        within(60, lambda: load.answered_over_both(0.0, WARM * CLIENTS))
        with filled(shared_memory.DIRECTORY) as taken:
            struck = time.monotonic()
            large = _ask_for_more(service, struck + FULL_S)
            full = [o for o in list(load.outcomes) if o.ended > struck]
        freed = time.monotonic()
        within(limit, lambda: readiness.first(True, freed) is not None)
        again = readiness.first(True, freed)
        right = within(60, lambda: load.answered_over_both(again or freed, WARM * CLIENTS))
    away = readiness.first(False, struck)
    errors = sum(bool(o.error) for o in full)
    yield in_flight(f"/dev/shm is full ({taken >> 20} MiB)", load.outcomes, struck, again)
    yield Line(
        "  meanwhile",
        f"{len(full) - errors} answers, {errors} errors; "
        + ("ready" if away is None else f"not ready after {away - struck:.1f} s"),
        "",
    )
    longest = max(seconds for _, seconds in large)
    ways = Counter(how for how, _ in large)
    yield Line(
        f"  prompts of {LARGE_MIB} MiB, for which there is no room",
        ", ".join(f"{count} {how}" for how, count in ways.most_common())
        + f"; the last after {longest:.1f} s",
        f"<= {ENDED_WITHIN_S:g} s",
        longest <= ENDED_WITHIN_S,
    )
    yield Line(
        "  ready, once there is room",
        "never" if again is None else f"after {again - freed:.2f} s",
        f"<= {limit:.1f} s",
        again is not None and again - freed <= limit,
    )
    yield afterwards(load.outcomes, again or freed, right)
    yield nothing_more(subject)


def _ask_for_more(service: Service, until: float) -> list[tuple[str, float]]:
    """Outcomes and seconds of prompts that need more shared memory than there is."""
    found = []
    while time.monotonic() < until:
        began = time.monotonic()
        with Client(service.grpc) as client:
            try:
                client.generate("7" * (LARGE_MIB << 20), timeout_s=30.0)
                how = "answers"
            except ClientError as error:
                how = type(error).__name__
        found.append((how, time.monotonic() - began))
        time.sleep(AFTER_S)
    return found
