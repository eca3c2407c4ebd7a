from __future__ import annotations

import pytest
import torch

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import PassShape
from dgemma.engine.buckets import Bucket, Buckets, Limits, padded, pairs_of
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.geometries import named_geometry
from dgemma_build.envelope import Envelope
from tests.dgemma.engine.fake_engine import geometry_of

GEOMETRY = geometry_of(sliding_window=300)
CAPACITY = Capacity(slots=3, context=1000, rows=6)
LIMITS: Limits = {
    "rows": (1, 6),
    "pairs": (0, 3),
    "slots": (1, 3),
    "context": (1, 1000),
    "ring": (1, 300),
    "capacity": (1, 48),
}
IDS = torch.arange(8)


def buckets(*profiles: Limits, capacity: Capacity = CAPACITY) -> Buckets:
    return Buckets(GEOMETRY, capacity, profiles or (LIMITS,))


def encode(slot: int, start: int = 0, valid: int = 8) -> Row:
    return Row(IDS, slot, start, valid, denoise=False)


def denoise(slot: int, start: int, partner: int = -1) -> Row:
    return Row(IDS, slot, start, 8, denoise=True, partner=partner)


def test_sizes_are_doubled_up_to_what_is_served() -> None:
    found = list(buckets().all())
    assert {b.rows for b in found} == {1, 2, 4, 6}
    assert {b.context for b in found} == {256, 512, 1000}
    assert {(b.rows, b.pairs) for b in found} == {
        *((1, 0), (2, 0), (2, 1), (4, 0), (4, 2), (6, 0), (6, 3))
    }
    assert len(found) == len(set(found)) == 7 * 3
    assert found[0] == Bucket(rows=6, pairs=3, context=1000, ring=300, room=36)


@pytest.mark.parametrize("start", [0, 1, 256, 257, 512, 513, 900, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_a_pass_fits_its_bucket_and_the_bucket_is_one_that_was_prepared(
    count: int, start: int
) -> None:
    rows = [denoise(i % 3, start if i == count - 1 else 0) for i in range(count)]
    bucket, shape = buckets().of(rows), PassShape.of(rows, GEOMETRY, CAPACITY)
    assert bucket in set(buckets().all())
    assert count <= bucket.rows <= 2 * count
    assert shape.rows <= bucket.rows and start <= bucket.context
    assert bucket.ring >= min(start, 300) and bucket.ring <= 300
    assert bucket.context <= max(256, 2 * start)


def test_only_passes_with_partners_have_pairs() -> None:
    alone = [encode(0), denoise(1, 0)]
    paired = [encode(0), denoise(0, 8, partner=0)]
    assert (buckets().of(alone).pairs, buckets().of(paired).pairs) == (0, 1)


def test_padding_repeats_rows_without_partners() -> None:
    rows = [encode(0, valid=5), denoise(0, 5, partner=0), denoise(1, 40)]
    full = padded(rows, 6)
    assert full[:3] == rows
    assert [row.slot for row in full[3:]] == [0, 0, 1]
    assert [row.start for row in full[3:]] == [0, 5, 40]
    assert all(row.partner == -1 for row in full[3:])
    assert pairs_of(full, 3) == ([0, 0, 0], [1, 1, 1])
    assert pairs_of(full, 0) == ([], []) or pairs_of(full, 1) == ([0], [1])
    assert pairs_of([encode(0)], 0) == ([], [])


def test_room_is_an_even_share_and_half_as_much_until_a_pass_overflows() -> None:
    one = buckets().of([encode(0)])
    assert one.room == 8  # all tokens of so short a row
    pass_ = buckets().of([denoise(i, 0) for i in (0, 1, 2, 0)])
    assert pass_.room == 24  # 32 tokens, 2 of 4 experts each
    assert buckets().roomier(pass_, 25).room == 32
    with pytest.raises(EngineFailure, match="one expert got 49 tokens, the plan takes at most 48"):
        buckets().roomier(pass_, 49)


def test_the_room_is_at_most_what_the_plan_was_built_for() -> None:
    tight = buckets({**LIMITS, "capacity": (1, 20)})
    assert tight.of([denoise(i, 0) for i in (0, 1, 2, 0)]).room == 20
    assert tight.largest.room == 20


def test_the_profile_is_the_first_that_covers_the_pass() -> None:
    small = {**LIMITS, "rows": (1, 2), "pairs": (0, 1), "capacity": (1, 16)}
    both = buckets(small, {**LIMITS, "rows": (3, 6)})
    both.check("plan")
    assert both.profile(both.of([encode(0), encode(1)])) == 0
    assert both.profile(both.of([encode(0), encode(1), encode(2)])) == 1


@pytest.mark.parametrize(
    ("size", "most", "named"), [("slots", 2, "2 slots, 3"), ("context", 512, "512 context, 1000")]
)
def test_a_plan_that_is_too_small_for_the_service(size: str, most: int, named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"plan: was built for at most {named} are asked"):
        buckets({**LIMITS, size: (1, most)}).check("plan")


def test_a_plan_with_a_hole_between_its_profiles() -> None:
    with pytest.raises(ConfigurationError, match="no profile of the plan covers"):
        buckets({**LIMITS, "rows": (1, 2)}, {**LIMITS, "rows": (5, 6)}).check("plan")
    with pytest.raises(ConfigurationError, match="does not say for which shapes it was built"):
        Buckets(GEOMETRY, CAPACITY, ()).check("plan")


def test_what_the_plan_has_no_input_for_is_not_limited() -> None:
    dense = {name: limits for name, limits in LIMITS.items() if name not in ("capacity", "ring")}
    buckets(dense).check("plan")


def test_the_real_geometry_has_few_shapes() -> None:
    g, envelope = named_geometry("diffusiongemma-26b-a4b"), Envelope.of_slots(8, 32768)
    capacity = Capacity(envelope.slots, envelope.context, envelope.rows)
    limits = LIMITS | {"rows": (1, 16), "pairs": (0, 8), "slots": (1, 8), "context": (1, 32768)}
    limits |= {"ring": (1, g.sliding_window), "capacity": (1, 4096)}
    found = list(Buckets(g, capacity, (limits,)).all())
    assert len(found) == 9 * 8
    assert {b.room for b in found if b.rows == 1} == {24}
