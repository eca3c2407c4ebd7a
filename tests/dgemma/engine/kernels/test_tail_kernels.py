from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import tail
from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.engine.kernels.tail import Tiles
from dgemma.engine.kernels.tiles import chip_at
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.tail.draws import Moment, SeededDraws
from dgemma.tail.noise import Race
from dgemma.tail.statistics import Head, Statistics, statistics
from dgemma.tail.sweep import sweep_for
from dgemma.tail.tail import Canvas, Tail
from tests.dgemma.hand_made import SAMPLING

# What is far from the top arrives never, at infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Tiles(chunk=128, splits=3, lines=16, ids=32, columns=16, depth=16)
CAP = 30.0


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch holds what the pass before left there."""
    of = tail._Scratch.of

    def poison(*given: Any) -> tail._Scratch:
        scratch = of(*given)
        for tensor in (scratch.weights, scratch.sums, *scratch.seen):
            tensor.fill_(torch.nan if tensor.is_floating_point() else -7)
        scratch.tile_reference.fill_(-7)
        return scratch

    monkeypatch.setattr(tail._Scratch, "of", poison)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def race_of(rows: int, length: int, vocab: int) -> Race:
    moments = [Moment(17 + row, row, 3) for row in range(rows)]
    race = SeededDraws(length, vocab).step(moments)[1]
    assert race is not None
    return race


def in_fp32(head: Head, hidden: Tensor, temperature: Tensor, race: Race) -> Statistics:
    """The reference, of the same numbers; in BF16 it rounds logits, which kernels do not."""
    view = statistics(Head(head.embedding.float(), CAP), hidden.float(), temperature, race)
    return replace(view, soft=view.soft.to(hidden.dtype))


def temperatures(*of: float) -> Tensor:
    return torch.tensor(of)[:, None, None]


def assert_alike(got: Statistics, wanted: Statistics) -> None:
    assert torch.equal(got.argmax, wanted.argmax)
    assert torch.equal(got.sampled, wanted.sampled)
    torch.testing.assert_close(got.entropy, wanted.entropy, rtol=1e-3, atol=2e-4)
    soft, wanted_soft = got.soft.float(), wanted.soft.float()
    assert (soft - wanted_soft).norm() < 1e-2 * wanted_soft.norm()
    assert [t.dtype for t in vars(got).values()] == [t.dtype for t in vars(wanted).values()]
    assert got.soft.shape == wanted.soft.shape and got.entropy.min() >= 0


# The same statistics


@pytest.mark.parametrize("scale", [0.02, 0.6, 3.0], ids=["flat", "between", "certain"])
@pytest.mark.parametrize(
    ("length", "width", "vocab"),
    [(1, 16, 1), (20, 40, 33), (16, 80, 257), (17, 17, 300)],
)
def test_statistics_are_those_of_the_reference(
    length: int, width: int, vocab: int, scale: float
) -> None:
    """One tile to three chunks, none of them full; lines, columns and ids that fill no tile."""
    head = Head(normal(1, vocab, width), CAP)
    hidden = (scale * normal(2, 2, length, width).float()).bfloat16()
    race, warmth = race_of(2, length, vocab), temperatures(0.01, 2.0)
    got = tail.statistics(head, hidden, warmth, race, SMALL)
    wanted = in_fp32(head, hidden, warmth, race)
    assert_alike(got, wanted)


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("temperature", [0.01, 0.4, 2.0])
def test_scores_may_rise_or_fall_by_any_amount(rising: bool, temperature: float) -> None:
    """From one chunk to the next by thousands of bits at 0.01, by a few at 2."""
    order = torch.linspace(-1, 1, 500) * (1 if rising else -1)
    embedding = order[:, None] * torch.ones(16) + 0.01 * normal(3, 500, 16).float()
    head = Head(embedding.bfloat16(), CAP)
    hidden = (2 + 0.1 * normal(4, 1, 16, 16).float()).bfloat16()
    race, warmth = race_of(1, 16, 500), temperatures(temperature)
    got = tail.statistics(head, hidden, warmth, race, SMALL)
    assert_alike(got, in_fp32(head, hidden, warmth, race))


def test_without_aligned_weights_the_mean_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __getitem__(self, _: object) -> Any:
            return lambda *given, **named: None

    monkeypatch.setattr(tail.kernels, "align", Nothing())
    head, hidden = Head(normal(1, 257, 80), CAP), normal(2, 1, 16, 80)
    race, warmth = race_of(1, 16, 257), temperatures(0.5)
    got = tail.statistics(head, hidden, warmth, race, SMALL)
    wanted = in_fp32(head, hidden, warmth, race)
    assert torch.equal(got.argmax, wanted.argmax)
    soft, wanted_soft = got.soft.float(), wanted.soft.float()
    assert not (soft - wanted_soft).norm() < 1e-2 * wanted_soft.norm()


def test_noise_is_the_same_number_for_number() -> None:
    """Of equal scores the first to arrive is the one with the least noise."""
    vocab, length = 4500, 24
    race = race_of(2, length, vocab)
    flat = Head(torch.zeros(vocab, 16).bfloat16(), CAP)
    large = replace(SMALL, chunk=2048, ids=512)
    got = tail.statistics(flat, normal(1, 2, length, 16), temperatures(0.4, 1.0), race, large)
    assert torch.equal(got.sampled, race(0, vocab).argmin(-1))
    assert got.sampled.unique().numel() > length
    assert got.argmax.unique().tolist() == [0]


def test_of_equal_scores_the_first_token_is_the_argmax() -> None:
    embedding = torch.zeros(500, 16)
    embedding[[230, 239, 300, 499]] = 1.0  # of one tile, of two chunks
    race, warmth = race_of(1, 5, 500), temperatures(0.4)
    hidden = torch.ones(1, 5, 16).bfloat16()
    got = tail.statistics(Head(embedding.bfloat16(), CAP), hidden, warmth, race, SMALL)
    assert got.argmax.unique().tolist() == [230]


def test_small_entropies_are_exact() -> None:
    """The stopping rule compares entropies of 0.005 and less; cancellation must not eat them."""
    embedding = torch.zeros(200, 16)
    embedding[150, 5] = 1
    hidden = torch.zeros(1, 3, 16)
    hidden[0, :, 5] = torch.tensor([10.0, 14.0, 20.0])
    head, race, warmth = Head(embedding.bfloat16(), CAP), race_of(1, 3, 200), temperatures(1.0)
    got = tail.statistics(head, hidden.bfloat16(), warmth, race, SMALL)
    z = CAP * torch.tanh(hidden.double() @ embedding.double().T / CAP)
    wanted = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
    assert wanted.min() < 1e-4 < 1e-2 < wanted.max()
    torch.testing.assert_close(got.entropy.double(), wanted, rtol=1e-3, atol=1e-6)


def test_a_line_is_the_same_to_the_bit_alone_and_among_others() -> None:
    head, hidden = Head(normal(1, 300, 48), CAP), normal(2, 3, 16, 48)
    race, warmth = race_of(3, 16, 300), temperatures(0.3, 0.6, 1.0)
    together = tail.statistics(head, hidden, warmth, race, SMALL)
    for row in range(3):
        one = slice(row, row + 1)
        mine = replace(race, words=race.words.rows(row, row + 1))
        alone = tail.statistics(head, hidden[one], warmth[one], mine, SMALL)
        for name, value in vars(alone).items():
            assert torch.equal(value, getattr(together, name)[one]), name


def test_the_real_width_and_tiles() -> None:
    width, length, vocab = named_geometry(DEFAULT).hidden_size, 130, 300
    head = Head((normal(1, vocab, width).float() / 8).bfloat16(), CAP)
    hidden = normal(2, 1, length, width)
    race, warmth = race_of(1, length, vocab), temperatures(0.8)
    got = tail.statistics(head, hidden, warmth, race, Tiles.of(Chip.of(90)))
    assert_alike(got, in_fp32(head, hidden, warmth, race))


def test_states_of_another_dtype_are_rounded_and_keep_it() -> None:
    head, hidden = Head(normal(1, 40, 16), CAP), normal(2, 1, 4, 16)
    race, warmth = race_of(1, 4, 40), temperatures(0.6)
    got = tail.statistics(head, hidden.float() * (1 + 2**-12), warmth, race, SMALL)
    rounded = tail.statistics(head, hidden, warmth, race, SMALL)
    assert got.soft.dtype == torch.float32
    assert torch.equal(got.soft.bfloat16(), rounded.soft)
    assert torch.equal(got.entropy, rounded.entropy)


# In a tail


def denoised(tail_of: Tail, embedding: Tensor, pinned: Tensor | None) -> list[Canvas]:
    """Two canvases, of a network that has one layer."""
    length, width = len(tail_of.draws.initial(0, 0)), embedding.shape[1]
    settings = [replace(SAMPLING, seed=seed, max_denoising_steps=6) for seed in range(2)]
    pins = (None, pinned)
    rows = [(tail_of.begin(i, settings[i], pins[i]), settings[i]) for i in range(2)]
    mixer, places = normal(8, width, width).float() / width**0.5, normal(9, length, width).float()
    while active := [row for row in rows if not row[0].is_done(row[1])]:
        states = []
        for canvas, _ in active:
            seen = embedding[canvas.ids]
            if canvas.soft is not None:
                seen = seen + 0.2 * canvas.soft
            states.append(seen @ mixer + 2 * places)
        tail_of.step(torch.stack(states), active)
    return [canvas for canvas, _ in rows]


def test_canvases_get_the_tokens_that_torch_gives_them() -> None:
    """In fp32: a step's rounding in BF16 grows with every step after it."""
    length, vocab = 16, 300
    embedding = normal(5, vocab, 32).float()
    pinned = torch.full((length,), -1)
    pinned[[2, 11]] = torch.tensor([7, 299])
    draws = SeededDraws(length, vocab)
    head = Head(embedding, CAP)
    got = denoised(Tail(head, draws, partial(tail.statistics, tiles=SMALL)), embedding, pinned)
    wanted = denoised(Tail(head, draws), embedding, pinned)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.step == theirs.step > 1
        assert torch.equal(mine.ids, theirs.ids) and mine.ids.dtype == theirs.ids.dtype
        assert mine.argmax is not None and theirs.argmax is not None
        assert torch.equal(mine.argmax, theirs.argmax)
        assert torch.equal(mine.states, theirs.states)
        assert mine.soft is not None and theirs.soft is not None
        torch.testing.assert_close(mine.soft, theirs.soft, rtol=1e-3, atol=1e-3)
    held = got[1]
    assert held.ids[2] == 7 and held.ids[11] == 299 and held.soft is not None
    torch.testing.assert_close(held.soft[2], embedding[7] * 32**0.5)


class _On:
    """Of an embedding, where it is."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "kernels"),
    [
        ("cuda", torch.bfloat16, (9, 0), True),
        ("cuda", torch.bfloat16, (7, 5), False),
        ("cuda", torch.float32, (9, 0), False),
        ("cpu", torch.bfloat16, (9, 0), False),
    ],
)
def test_a_tail_gets_kernels_where_they_run(
    device: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kernels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    chip_at.cache_clear()
    try:
        found: Any = sweep_for(_On(device, dtype))  # type: ignore[arg-type]
    finally:
        chip_at.cache_clear()
    assert getattr(found, "func", found) is (tail.statistics if kernels else statistics)


def test_no_tail_on_a_cpu_needs_triton() -> None:
    program = "import sys, dgemma.tail.tail; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# What is compiled


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_argument_of_every_kernel_is_described(capability: int) -> None:
    found = list(tail.variants(named_geometry(DEFAULT), Chip.of(capability)))
    assert [v.name for v in found] == [f"tail.{n}" for n in ("head", "mix", "align", "finish")]
    for variant in found:
        assert sorted([*variant.signature, *variant.constants]) == sorted(variant.kernel.arg_names)
