"""A request that makes room at a block border and goes on later as if nothing had been."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from dgemma.assemble import Parts, assemble
from dgemma.scheduler.options import Options
from dgemma.scheduler.tenancy import Tenant
from dgemma_build.demo.vocabulary import to_ids
from tests.dgemma.engine.fake_engine import hashed
from tests.dgemma.scheduler.requests import Desk, desk, fixed_steps, modes, request
from tests.dgemma.scheduler.runs import play

L = 8
A, B = Tenant("a"), Tenant("b")


def crowded(options: Options | None = None) -> Desk:
    """One slot; a long request of one tenant has it when a short one of another comes."""
    at = desk(slots=1, options=options)
    at.submit(request("long", prompt="p" * 11, tenant=A, **fixed_steps(3, max_new_tokens=6 * L)))
    at.scheduler.step()
    at.scheduler.step()
    at.submit(request("short", tenant=B, **fixed_steps(2)))
    at.run()
    return at


def test_a_long_request_makes_room_for_a_short_one_of_another_tenant() -> None:
    at = crowded()
    long, short = at.usage("long"), at.usage("short")
    assert short.total_ms < long.total_ms
    assert short.passes == 2
    assert long.prefill_chunks > 2  # its context was encoded again
    assert long.passes <= 6 * 3 + long.prefill_chunks


def test_first_come_first_served_makes_no_room() -> None:
    at = crowded(Options(fair=False))
    assert at.usage("long").prefill_chunks == 2
    assert modes(at.engine.passes)[-2:] == ["ed", "d"]


def test_what_comes_out_is_what_came_out_without_others() -> None:
    alone = desk(slots=1)
    alone.submit(request("long", prompt="p" * 11, tenant=A, **fixed_steps(3, max_new_tokens=6 * L)))
    alone.run()
    at = crowded()
    assert at.ids("long") == alone.ids("long")
    assert [b.block_index for b in at.blocks("long")] == list(range(6))
    assert at.ids("short") == hashed(tuple(to_ids("?")), L)


def test_a_context_is_encoded_again_in_the_same_chunks() -> None:
    at = crowded()
    rows = [row for rows in at.engine.passes for row in rows if not row.denoise]
    chunks: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for row in rows:
        if row.ids[0].item() != to_ids("?")[0]:
            chunks.setdefault((row.start, row.valid), set()).add(tuple(row.ids.tolist()))
    starts = sorted(start for start, _ in chunks)
    assert starts == [0, 8, *range(11, 11 + 5 * L, L)]
    assert all(len(contents) == 1 for contents in chunks.values())


def test_a_request_that_has_made_room_can_be_cancelled() -> None:
    at = desk(slots=1)
    at.submit(request("long", tenant=A, **fixed_steps(1, max_new_tokens=20 * L)))
    at.scheduler.step()
    at.submit(request("short", tenant=B, **fixed_steps(4)))
    while at.scheduler.stats.waiting:
        at.scheduler.step()
    assert at.end("long") is None
    at.scheduler.step()
    at.submit(request("third", tenant=B, **fixed_steps(4)))
    at.scheduler.cancel("long")
    at.run()
    assert at.reason("long") == "cancelled"
    assert at.reason("third") == "length"
    assert at.scheduler.stats.running == at.scheduler.stats.waiting == 0


# On a real engine


@pytest.fixture(scope="module")
def demo_parts(demo_engine: Path, demo_checkpoint: Path) -> partial[Parts]:
    return partial(assemble, demo_engine, demo_checkpoint, threads=1)


def test_pre_empted_requests_get_the_same_bits_on_the_demo_engine(
    demo_parts: partial[Parts],
) -> None:
    rng = random.Random(5)
    length = 96
    requests = [
        (
            2 * number,
            request(
                str(number),
                prompt=[rng.randrange(32, 120) for _ in range(rng.randint(1, 2 * length))],
                tenant=Tenant(f"t{number % 3}"),
                seed=number,
                ignore_eos=True,
                **fixed_steps(4, max_new_tokens=(6, 1)[number % 2] * length),
            ),
        )
        for number in range(6)
    ]
    parts = demo_parts(slots=1)
    crowd = play(parts, requests)
    assert parts.scheduler.stats.preemptions >= 2
    for arrival in requests:
        name = arrival[1].id
        alone = play(parts, [arrival])[name]
        assert crowd[name].has_the_bits_of(alone)
    assert sum(heard.prefill_chunks for heard in crowd.values()) >= 12
