"""Does what is known of a prompt, or how its rows are arranged, change an answer?

Knows what is promised of prefixes from the cache, chunks with other borders and fused passes, and a
control that must break it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from dgemma.assemble import Parts
from dgemma.engine.base import Snapshot
from dgemma.scheduler.options import Options
from dgemma.tail.draws import Moment
from dgemma.tail.tail import Tail
from tests.accept.decisions import Decision, Divergence, divergence
from tests.accept.main_job import Line
from tests.accept.mixes import MOST, Asked, Chats, Heard, OneByOne, Seam, Stage, Told
from tests.accept.same_answers import CONTROLS, SLOTS, Findings, opened, passes, progress

CLOSE = 1e-4
MOST_DIVERGED = 0.01
BLOCKS = (3, 12, 200)  # that a prefix cache has room for


def reuse(
    parts: Parts,
    mixes: Sequence[int],
    seed: int,
    change: Callable[[Stage], None] = lambda stage: None,
) -> Findings:
    """Requests with what others have left in the cache, against each alone and from nothing.

    The reference runs every row in a pass of its own. Crowds are forced along its tokens: so their
    first other decision is where they would have gone another way, and behind it hidden states can
    still be compared.
    """
    engine, tail = parts.scheduler.engine, parts.scheduler.tail
    length = engine.geometry.canvas_length
    block = engine.snapshot(0, 0, length).nbytes
    alone = Stage(parts, OneByOne(engine, 1), tail)
    found = Findings()

    stages = [
        Stage(parts, Seam(engine, slots), tail, Options(prefix_cache_bytes=blocks * block))
        for blocks in BLOCKS
        for slots in SLOTS
    ]
    for stage in stages:
        change(stage)
    for index in track(mixes, "mixes", console=progress, transient=True):
        rng = random.Random(f"reuse {seed}/{index}")
        stage = stages[index % len(stages)]
        stage.scheduler.prefill_rows = rng.choice([1, 2, 4])
        chats = Chats(rng, parts, f"{seed}-{index}", lambda asked: alone.run([Asked(asked)])[0])
        for _ in range(rng.randint(2, MOST)):
            chats.tell()
        forced = {
            moment: decision
            for told in chats.told
            for moment, decision in told.heard.decisions.items()
        }
        crowd = stage.run([told.asked for told in chats.told], forced)
        for told, heard in zip(chats.told, crowd, strict=True):
            found.add(heard, length)
            found.shifted += told.shifted(heard.usage.cached_tokens, length)
            found.apart.extend(distances(heard.decisions, told.heard.decisions))
            if at := first_divergence(tail, told, heard):
                found.divergences.append(at)
    for stage in stages:
        cache = stage.scheduler.cache
        assert cache is not None
        found.fused += stage.seam.partners
        found.evicted += cache.evicted
        found.preemptions += stage.scheduler.preemptions
    return found


def distances(
    heard: Mapping[Moment, Decision], reference: Mapping[Moment, Decision]
) -> Iterator[float]:
    for moment, decision in heard.items():
        yield decision.distance(reference[moment])


def first_divergence(tail: Tail, told: Told, heard: Heard) -> Divergence | None:
    """Of a run that was forced along what it was told alone."""
    for moment, decision in heard.decisions.items():  # in their order
        known = told.heard.decisions[moment]
        if not decision.agrees(known):
            return divergence(tail, moment, told.asked.request.sampling, known, decision)
    return None


class Spoiling(Seam):
    """Copies come back a little different: the mistake that comparing hidden states must find."""

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        parts = [part * 1.001 for part in snapshot.parts]
        super().restore(slot, replace(snapshot, parts=parts))


def spoil(stage: Stage) -> None:
    stage.seam = Spoiling(stage.seam.engine, stage.seam.capacity.slots)
    stage.begin()


def closeness(engine: Path, checkpoint: Path, mixes: int) -> Iterator[Line]:
    """Prefix hits, shifted chunks and fused passes leave hidden states where they are."""
    parts = opened(engine, checkpoint)
    found = reuse(parts, range(mixes), seed=2)
    yield Line(
        f"{mixes} mixes with chats, {found.requests} requests",
        f"{found.hits} hits, {found.shifted} of them shifted; {found.fused} rows behind a partner; "
        f"{found.preemptions} pre-emptions; {found.steps} denoise steps",
        "",
    )
    farthest = max(found.apart)
    yield Line(
        "  hidden states, forced along the reference's tokens",
        f"{farthest:.1e} apart at most, {sum(map(bool, found.apart))} not the same bits",
        f"<= {CLOSE:.0e}",
        farthest <= CLOSE,
    )
    for at in found.divergences:
        seen = (
            f"block {at.moment.block}, step {at.moment.step}: {at.what}, margin {at.margin:.1e}, "
            f"hidden states {at.apart:.1e} apart by then"
        )
        yield Line("  a first divergence", seen, f"<= {CLOSE:.0e}", at.margin <= CLOSE)
    share = len(found.divergences) / found.requests
    yield Line(
        "  requests that diverge",
        f"{len(found.divergences)} of {found.requests}, {share:.2%}",
        f"<= {MOST_DIVERGED:.0%}",
        share <= MOST_DIVERGED,
    )
    yield Line(
        "  blocks evicted among running requests",
        f"{found.evicted}",
        "some, and none is corrupted",
        found.evicted > 0 and farthest <= CLOSE,
    )
    yield from passes(found)
    control = reuse(parts, range(max(len(BLOCKS) * len(SLOTS), round(mixes * CONTROLS))), 2, spoil)
    spoilt = max(control.apart)
    seen = f"{spoilt:.1e} apart, {len(control.divergences)} diverge"
    yield Line("  control: copies 0.1% too large", seen, "far apart", spoilt > CLOSE)
