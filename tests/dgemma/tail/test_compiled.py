from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from dgemma.crew import Crew
from dgemma.errors import ConfigurationError
from dgemma.sampling import Sampling
from dgemma.tail.bound_step import Graphs
from dgemma.tail.compiled import CompiledTail
from dgemma.tail.draws import SeededDraws
from dgemma.tail.graph import DRAW, LOOK, MOVE
from dgemma.tail.noise import FEW_TOKENS
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Canvas, Tail
from dgemma.template import FREE
from dgemma_build.emit_tail import EMBEDDING, emit_tail
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.scheduler.requests import SAMPLING

GEOMETRY = geometry_of(canvas_length=24, vocab_size=90, hidden_size=20)
LENGTH, SIZE, VOCAB = GEOMETRY.canvas_length, GEOMETRY.hidden_size, GEOMETRY.vocab_size
EMBEDDINGS = torch.randn(VOCAB, SIZE, generator=torch.Generator().manual_seed(0))
HEAD = Head(EMBEDDINGS, GEOMETRY.final_logit_softcapping)
EAGER = Tail(HEAD, SeededDraws(LENGTH, VOCAB))
STEPS = 4
FILES = [ends.file for ends in (LOOK, DRAW, MOVE)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs, with the embedding inside."""
    out = tmp_path_factory.mktemp("engine")
    for name, graph in emit_tail(GEOMETRY).items():
        kept = [value for value in graph.graph.input if value.name != EMBEDDING]
        del graph.graph.input[:]
        graph.graph.input.extend(kept)
        graph.graph.initializer.append(numpy_helper.from_array(EMBEDDINGS.numpy(), EMBEDDING))
        onnx.save(graph, out / name)
    return out


def load(directory: Path, threads: int = 1) -> CompiledTail:
    graphs = Graphs.load(directory, GEOMETRY, Crew(threads))
    return CompiledTail(HEAD, SeededDraws(LENGTH, VOCAB), graphs=graphs)


@pytest.fixture(scope="module")
def compiled(directory: Path) -> CompiledTail:
    return load(directory)


def hidden(seed: int, rows: int = 1) -> Tensor:
    """Of some canvases that are sure of most tokens, and of some that are sure of none."""
    strength = (0.1, 0.5, 1.0, 3.0)[seed % 4]
    noise = torch.Generator().manual_seed(seed)
    return strength * torch.randn(rows, LENGTH, SIZE, generator=noise)


def settings(seed: int) -> Sampling:
    return replace(
        SAMPLING, seed=seed, max_denoising_steps=STEPS + 1, entropy_bound=(0.1, 2.0, 30.0)[seed % 3]
    )


def template(seed: int) -> Tensor | None:
    """None for half of the seeds."""
    if seed % 2:
        return None
    noise = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (LENGTH,), generator=noise)
    return torch.where(torch.rand(LENGTH, generator=noise) < 0.4, tokens, FREE)


def run(tail: Tail, seeds: Sequence[int]) -> list[Canvas]:
    """Canvases of these seeds in one pass, after `STEPS` steps; the hidden states are theirs."""
    rows = [
        (tail.begin(seed % 5, settings(seed), template(seed)), settings(seed)) for seed in seeds
    ]
    for step in range(STEPS):
        # Two steps in a row see the same, so that some of the canvases repeat themselves.
        states = torch.cat([hidden(seed * STEPS + step // 2) for seed in seeds])
        tail.step(states, rows)
    return [canvas for canvas, _ in rows]


@pytest.mark.parametrize("seed", range(24))
def test_the_graphs_compute_what_the_tail_does(compiled: CompiledTail, seed: int) -> None:
    (wanted,), (got,) = run(EAGER, [seed]), run(compiled, [seed])
    assert got.argmax is not None and wanted.argmax is not None
    assert got.accepted is not None and wanted.accepted is not None
    assert torch.equal(got.argmax, wanted.argmax)
    assert torch.equal(got.accepted, wanted.accepted)
    assert (got.repeats, got.step, got.converged) == (
        wanted.repeats,
        wanted.step,
        wanted.converged,
    )
    # A score is up to 75, where neighbouring numbers lie 8e-6 apart; entropies are no more exact.
    torch.testing.assert_close(got.entropy, wanted.entropy, rtol=1e-5, atol=1e-5)
    assert got.mean_entropy == pytest.approx(wanted.mean_entropy, rel=1e-5, abs=1e-5)
    if not wanted.converged:
        assert torch.equal(got.ids, wanted.ids)
        # A weight is off by what its score is, and so is the mean of embeddings.
        scale = float(wanted.soft.abs().max())
        torch.testing.assert_close(got.soft, wanted.soft, rtol=0, atol=1e-5 * scale)


def test_a_row_is_the_same_to_the_last_bit_among_others(compiled: CompiledTail) -> None:
    crowd = run(compiled, range(8))
    for seed, among in enumerate(crowd):
        (alone,) = run(compiled, [seed])
        for name in ("ids", "soft", "argmax", "accepted", "entropy"):
            assert torch.equal(getattr(alone, name), getattr(among, name)), name


@pytest.mark.parametrize("rows", [1, 3])
def test_a_canvas_that_is_done_gets_no_next_one(directory: Path, rows: int) -> None:
    """Alone or beside one that is not."""
    tail, seeds = load(directory, 2), range(rows)
    done, more = (replace(settings(1), max_denoising_steps=steps) for steps in (1, 2))
    canvases = [tail.begin(seed, done, None) for seed in seeds]
    before = [canvas.ids for canvas in canvases]
    tail.step(
        hidden(1, rows),
        [(canvas, done if seed == 0 else more) for seed, canvas in enumerate(canvases)],
    )
    for seed, canvas in enumerate(canvases):
        assert canvas.argmax is not None
        assert (canvas.ids is before[seed]) == (canvas.soft is None) == (seed == 0)


@pytest.mark.parametrize("threads", [2, 3, 11])
def test_any_number_of_threads_gives_the_same_bits(
    directory: Path, compiled: CompiledTail, threads: int
) -> None:
    tail = load(directory, threads)
    for got, wanted in zip(run(tail, range(8)), run(compiled, range(8)), strict=True):
        for name in ("ids", "soft", "argmax", "accepted", "entropy", "mean_entropy", "repeats"):
            a, b = getattr(got, name), getattr(wanted, name)
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name


def test_what_one_step_gave_is_not_overwritten_by_another(compiled: CompiledTail) -> None:
    (canvas,) = run(compiled, [1])
    kept = {name: getattr(canvas, name).clone() for name in ("ids", "soft", "argmax", "entropy")}
    run(compiled, [5])
    for name, value in kept.items():
        assert torch.equal(getattr(canvas, name), value), name


def test_a_large_vocabulary_has_no_graphs() -> None:
    assert emit_tail(replace(GEOMETRY, vocab_size=FEW_TOKENS + 1)) == {}


@pytest.mark.parametrize("name", FILES)
def test_a_graph_that_cannot_be_loaded_is_named(directory: Path, tmp_path: Path, name: str) -> None:
    for file in FILES:
        (tmp_path / file).write_bytes((directory / file).read_bytes())
    (tmp_path / name).write_bytes(b"no graph")
    with pytest.raises(ConfigurationError, match=f"{name}: onnxruntime cannot load it"):
        load(tmp_path)
    other = FILES[FILES.index(name) - 1]
    (tmp_path / name).write_bytes((directory / other).read_bytes())
    with pytest.raises(ConfigurationError, match=f"{name}: of another version; build it again"):
        load(tmp_path)
