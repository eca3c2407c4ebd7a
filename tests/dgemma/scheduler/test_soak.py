"""Ten thousand requests of every kind leave nothing behind, and each has one end."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

from dgemma.errors import DgemmaError, EngineFailure
from dgemma.scheduler.fair_queue import FairQueue
from dgemma.scheduler.options import Options
from dgemma.scheduler.tenancy import Limits, Tenant
from tests.dgemma.scheduler.dice import L, Stage, asked

REQUESTS = 10_000
CACHE = 40 * L
TENANTS = [
    Tenant("plain"),
    Tenant("heavy", 4.0, Limits(max_priority=3)),
    Tenant("narrow", 1.0, Limits(max_running=1, max_queued=5)),
    Tenant("metered", 2.0, Limits(tokens_per_minute=20_000)),
    Tenant("short", 0.5, Limits(max_context=20)),
]


def test_ten_thousand_requests_leave_nothing_behind() -> None:
    options = Options(max_queued=60, prefill_rows=3, prefix_cache_bytes=CACHE)
    stage, rng = Stage(slots=6, options=options, fails=4), random.Random(1)
    scheduler, refused = stage.scheduler, Counter[str]()
    sent = 0
    while sent < REQUESTS or scheduler.busy:
        for _ in range(rng.choice([0, 0, 1, 1, 2, 5]) if sent < REQUESTS else 0):
            name, sent = str(sent), sent + 1
            try:
                stage.submit(
                    asked(
                        name,
                        rng.choice(TENANTS),
                        prompt=(rng.randrange(3),) * rng.choice([1, 5, L, 3 * L, 3 * L + 1, 90]),
                        max_new_tokens=rng.randint(1, 5 * L),
                        max_denoising_steps=rng.randint(1, 12),
                        seed=rng.randrange(1000),
                        priority=rng.choice([None, None, None, 0, 1]),
                        deadline_s=rng.choice([None, None, None, 0.001, 0.1, 0.5, 3.0]),
                    )
                )
            except DgemmaError as error:
                refused[error.grpc_code] += 1
                del stage.ends[name]
        if rng.random() < 0.3:
            scheduler.cancel(str(rng.randrange(max(0, sent - 80), sent + 1)))
        with suppress(EngineFailure):
            scheduler.step()

    assert len(stage.ends) + refused.total() == sent
    assert all(len(ends) == 1 for ends in stage.ends.values())
    kinds = Counter(
        (end.finish_reason, end.error and end.error.grpc_code) for [end] in stage.ends.values()
    )
    # Everything that can happen has happened, and often.
    assert min(refused[code] for code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")) > 100
    assert refused["DEADLINE_EXCEEDED"] > 10
    for kind in (
        ("stop", None),
        ("length", None),
        ("cancelled", None),
        ("error", "DEADLINE_EXCEEDED"),
        ("error", "INTERNAL"),
    ):
        assert kinds[kind] > 50, kinds

    assert not scheduler.open and not scheduler.running and not scheduler.busy
    assert sorted(scheduler.free_slots) == list(range(scheduler.slots))
    queue = scheduler.queue
    assert isinstance(queue, FairQueue)
    assert len(queue) == 0 and not queue._turns and queue._first() is None
    for tenant in TENANTS:
        assert queue.waiting(tenant) == queue.running(tenant) == 0
        assert abs(queue._accounts[tenant.name].ahead) < 1e-6
    assert scheduler.cache is not None and scheduler.cache.nbytes <= CACHE
    assert len(scheduler.deadlines) == 0
    # Nothing stays reserved: after a minute a whole minute's tokens are there again.
    stage.time.now += 60.0
    bucket = scheduler.admission._buckets["metered"]
    assert bucket.wait(20_000, stage.time.now) == 0
