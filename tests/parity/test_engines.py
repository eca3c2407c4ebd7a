"""The compiled `cpu` engine against the reference, and a row against itself in other company."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgemma.engine.base import Capacity, Engine, Row
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.engine.torch_reference import TorchReference
from dgemma.model.checkpoint import Checkpoint
from dgemma.model.experts import Router
from dgemma_build.demo.vocabulary import VOCAB_SIZE
from dgemma_build.engine import build_engine
from tests.oracle.checkpoints import CANVAS, write_tiny_checkpoint
from tests.oracle.hugging_face import ROUTER_MARGIN
from tests.oracle.passes import assert_close, padded, prefill

SLOTS, CONTEXT = 4, 400  # contexts of one pass differ by more than what they are rounded up to
CAPACITY = Capacity(SLOTS, CONTEXT, 2 * SLOTS)
Experts = dict[str, Any]
FEW: Experts = {"num_experts": 4, "top_k_experts": 2}
MANY: Experts = {"num_experts": 12, "top_k_experts": 3}

Pass = list[Row]


@dataclass(frozen=True)
class Kind:
    """A checkpoint and its engine."""

    checkpoint: Path
    engine: Path

    def compiled(self, threads: int = 1) -> OnnxEngine:
        return OnnxEngine(self.engine, CAPACITY, threads)

    def reference(self) -> TorchReference:
        return TorchReference.from_checkpoint(Checkpoint(self.checkpoint), CAPACITY)


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, emitted_once: None
) -> Callable[[Experts], Kind]:
    built: dict[int, Kind] = {}

    def get(experts: Experts) -> Kind:
        count = experts["num_experts"]
        if count not in built:
            root = tmp_path_factory.mktemp(f"experts-{count}")
            kind = Kind(write_tiny_checkpoint(root / "checkpoint", **experts), root / "engine")
            build_engine(kind.checkpoint, "cpu", "fp32", kind.engine)
            built[count] = kind
        return built[count]

    return get


@pytest.fixture(params=[FEW, MANY], ids=["dense", "capacity"])
def kind(request: pytest.FixtureRequest, build: Callable[[Experts], Kind]) -> Kind:
    return build(request.param)


def random_passes(seed: int, count: int = 8) -> Iterator[Pass]:
    """Prefill, commits, denoise steps and fused pairs of all slots, in any mixture and order."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    held = [0] * SLOTS
    for _ in range(count):
        rows: Pass = []
        for slot in rng.sample(range(SLOTS), rng.randint(1, SLOTS)):
            ids = torch.randint(0, VOCAB_SIZE, (2, CANVAS), generator=generator)
            soft = torch.randn(CANVAS, 48, generator=generator) if rng.random() < 0.5 else None
            valid = rng.choice([1, 7, CANVAS - 1, CANVAS])
            encode = Row(padded(ids[0, :valid], CANVAS), slot, held[slot], valid, denoise=False)
            denoise = Row(ids[1], slot, held[slot], CANVAS, denoise=True, soft=soft)
            pair = denoise._replace(start=encode.end, partner=len(rows))
            what = rng.choice(["encode", "denoise", "pair"])
            if what != "denoise":
                held[slot] = encode.end
            rows += {"encode": [encode], "denoise": [denoise], "pair": [encode, pair]}[what]
        yield rows


class RouterWatch:
    """The least lead of a chosen expert over one that was not, in all passes of a reference."""

    def __init__(self, network: nn.Module) -> None:
        self.margin = float("inf")
        for module in network.modules():
            if isinstance(module, Router):
                module.proj.register_forward_hook(self._of(module.top_k))

    def _of(self, top_k: int) -> Callable[[Any, Any, Tensor], None]:
        def watch(_: Any, __: Any, scores: Tensor) -> None:
            ranked = scores.sort(-1, descending=True).values
            least = (ranked[..., top_k - 1] - ranked[..., top_k]).min().item()
            self.margin = min(self.margin, least)

        return watch


@pytest.mark.parametrize("seed", range(4))
def test_mixed_passes_give_what_the_reference_gives(kind: Kind, seed: int) -> None:
    for attempt in range(20):  # a choice of experts that is a tie may fall either way
        reference, passes = kind.reference(), list(random_passes(seed + 100 * attempt))
        watch = RouterWatch(reference.network)
        expected = [reference.forward(rows).clone() for rows in passes]
        if watch.margin > ROUTER_MARGIN:
            break
    else:
        raise AssertionError("no passes whose experts are chosen clearly")
    compiled = kind.compiled()
    for rows, theirs in zip(passes, expected, strict=True):
        ours = compiled.forward(rows)
        for i, row in enumerate(rows):
            assert_close(ours[i, : row.valid], theirs[i, : row.valid])
    assert_pools_close(compiled, reference)


def assert_pools_close(one: OnnxEngine, other: TorchReference) -> None:
    for a, b in zip(one.pool.arrays, other.pool.arrays, strict=True):
        assert_close(torch.from_numpy(a), torch.from_numpy(b))


def test_both_ways_to_compute_experts_are_compiled(
    build: Callable[[Experts], Kind],
) -> None:
    alike = padded(torch.tensor([70]), CANVAS, 70)  # equal tokens crowd into the same experts
    for experts, overflows in ((FEW, False), (MANY, True)):
        engine = build(experts).compiled()
        engine.forward([Row(alike, 0, 0, CANVAS, denoise=False)])
        assert (engine.reruns > 0) == overflows


def test_a_pass_that_overflowed_and_was_run_again_leaves_no_trace(
    build: Callable[[Experts], Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = build(MANY)
    crowded, roomy = kind.compiled(), kind.compiled()
    monkeypatch.setattr(roomy, "_guess", lambda tokens: tokens)
    alike = padded(torch.tensor([70]), CANVAS, 70)
    for rows in random_passes(seed=3, count=4):
        rows.append(Row(alike, rows[0].slot, 64, CANVAS, denoise=True))
        assert torch.equal(crowded.forward(rows).clone(), roomy.forward(rows))
    assert crowded.reruns > 0 and roomy.reruns == 0
    for a, b in zip(crowded.pool.arrays, roomy.pool.arrays, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("seed", range(2))
def test_a_pass_on_two_cores_has_the_bits_that_it_has_on_one(kind: Kind, seed: int) -> None:
    """Whatever either of them has an expert overflow with, and so has to run again."""
    one, two = kind.compiled(1), kind.compiled(2)
    alike = padded(torch.tensor([70]), CANVAS, 70)
    for rows in random_passes(seed + 70):
        rows.append(Row(alike, rows[0].slot, 64, CANVAS, denoise=True))
        ours, theirs = two.forward(rows), one.forward(rows)
        for i, row in enumerate(rows):
            assert torch.equal(ours[i, : row.valid], theirs[i, : row.valid])
    for a, b in zip(one.pool.arrays, two.pool.arrays, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_rows_hidden_states_are_the_same_bits_alone_and_among_others(
    kind: Kind, seed: int, threads: int
) -> None:
    """Whatever the neighbours are: their number, modes, order, contexts and partners."""
    alone, among = kind.compiled(threads), kind.compiled(threads)
    rng = random.Random(seed)
    for engine in (alone, among):
        prefill(engine, torch.arange(CONTEXT - 5 * CANVAS) % VOCAB_SIZE, SLOTS - 1)
    for rows in random_passes(seed + 50, count=8):
        mine = [row for row in rows if row.slot != SLOTS - 1]
        if not mine:
            continue
        mixed = shuffled([*mine, *crowd(rng)], rng)
        together = among.forward([row for _, row in mixed])
        for unit in units(mine):
            hidden = alone.forward([row._replace(partner=index) for row, index in unit])
            for i, (row, _) in enumerate(unit):
                at = next(place for place, (was, _) in enumerate(mixed) if was is row)
                assert torch.equal(hidden[i, : row.valid], together[at, : row.valid])
    for a, b in zip(alone.pool.arrays, among.pool.arrays, strict=True):
        assert (a[: SLOTS - 1] == b[: SLOTS - 1]).all()


def crowd(rng: random.Random) -> list[Row]:
    """Up to two rows of the last slot, whose context is long."""
    start = CONTEXT - 5 * CANVAS
    ids = torch.tensor(rng.choices(range(VOCAB_SIZE), k=CANVAS))
    encode = Row(ids, SLOTS - 1, start, CANVAS, denoise=False)
    denoise = Row(ids, SLOTS - 1, start, CANVAS, denoise=True)
    return rng.choice([[], [encode], [denoise], [denoise, encode]])


def shuffled(rows: Sequence[Row], rng: random.Random) -> list[tuple[Row, Row]]:
    """Each row and itself in another order, where partners are named anew."""
    order = list(rows)
    rng.shuffle(order)
    place = {id(row): index for index, row in enumerate(order)}
    pairs = []
    for row in order:
        other = partner_of(rows, row)
        index = -1 if other is None else place[id(other)]
        pairs.append((row, row._replace(partner=index)))
    return pairs


def partner_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The encode row that ends where a partnered denoise row of its slot starts."""
    if row.partner < 0:
        return None
    return next(r for r in rows if not r.denoise and (r.slot, r.end) == (row.slot, row.start))


def units(rows: Sequence[Row]) -> list[list[tuple[Row, int]]]:
    """Rows that belong together, with their partners' places: pairs, and single rows."""
    paired = [(partner_of(rows, row), row) for row in rows if row.partner >= 0]
    together = [[(commit, -1), (row, 0)] for commit, row in paired if commit is not None]
    used = {id(row) for unit in together for row, _ in unit}
    return together + [[(row, -1)] for row in rows if id(row) not in used]


def test_an_engine_reads_its_checkpoints_embedding(kind: Kind) -> None:
    engine: Engine = kind.compiled()
    assert torch.equal(engine.embedding(), kind.reference().embedding())
