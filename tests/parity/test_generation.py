"""Whole answers against Hugging Face's `generate` under the same draws, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Row
from dgemma.engine.torch_reference import TorchReference
from dgemma.replay import replay
from dgemma.tail.statistics import Head
from dgemma_build.engine import build_engine
from tests.oracle.checkpoints import Case, draw_case
from tests.oracle.tapes import Played, play

SEEDS = range(100, 124)
ENGINE_SEEDS = (100, 101, 102)
STOPPING = 104

Replayed = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    """Every case as HF plays it; filled where a test first asks."""
    root = tmp_path_factory.mktemp("played")
    return Memo(root)


class Memo(dict[int, Played]):
    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, seed: int) -> Played:
        self[seed] = play(draw_case(seed), self.root / str(seed))
        return self[seed]


def run(played: Played, out: Path, engine: Path | None = None) -> Replayed:
    replay(played.checkpoint, played.tape, out, engine)
    with np.load(out) as file:
        return dict(file)


def assert_same(ours: Replayed, played: Played) -> None:
    """Every decision of every step, and that nothing is recorded for steps that did not run."""
    record, case = played.record, played.case
    np.testing.assert_array_equal(ours["sequences"], record.sequences)
    skipped = [0] * (case.canvases - len(record.steps))
    assert ours["steps"].tolist() == record.steps + skipped
    shape = (case.canvases, case.generation["max_denoising_steps"], case.canvas_length)
    ran = np.zeros(shape[:2], bool)
    for canvas, steps in enumerate(record.steps):
        ran[canvas, :steps] = True
        for step in range(steps):
            at = canvas, step
            argmax = record.logits[canvas][step].argmax(-1)
            np.testing.assert_array_equal(ours["argmax"][at], argmax.numpy())
            np.testing.assert_array_equal(
                ours["accepted"][at], record.accepted[canvas][step].numpy()
            )
            np.testing.assert_allclose(
                ours["entropy"][at], record.entropy[canvas][step].numpy(), rtol=0, atol=1e-4
            )
    assert ours["argmax"].shape == ours["accepted"].shape == ours["entropy"].shape == shape
    assert (ours["argmax"][~ran] == -1).all()
    assert not ours["accepted"][~ran].any()
    assert np.isnan(ours["entropy"][~ran]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_of_every_canvas_is_hugging_faces(
    seed: int, played: dict[int, Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = played[seed]
    heard = Denoised(monkeypatch)
    assert_same(run(case, tmp_path / "out.npz"), case)
    theirs = [logits for canvas in case.record.logits for logits in canvas]
    warmth = [temperature(case.case, step) for steps in case.record.steps for step in range(steps)]
    assert len(heard.scores) == len(theirs)
    for ours, expected, t in zip(heard.scores, theirs, warmth, strict=True):
        torch.testing.assert_close(ours, expected * t, rtol=0.0, atol=1e-4)


class Denoised:
    """Hears every pass of the reference engine and keeps the logits of its denoise rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scores: list[Tensor] = []
        forward = TorchReference.forward

        def heard(engine: TorchReference, rows: Sequence[Row]) -> Tensor:
            hidden = forward(engine, rows)
            head = Head(engine.embedding(), engine.geometry.final_logit_softcapping)
            scores = head.scores(hidden, torch.tensor(1.0), 0, engine.geometry.vocab_size)
            self.scores += [scores[i] - head.softcap for i, row in enumerate(rows) if row.denoise]
            return hidden

        monkeypatch.setattr(TorchReference, "forward", heard)


def temperature(case: Case, step: int) -> float:
    low, high = case.generation["t_min"], case.generation["t_max"]
    steps = case.generation["max_denoising_steps"]
    return float(low + (high - low) * (steps - step) / steps)


@pytest.mark.parametrize("seed", ENGINE_SEEDS)
def test_a_compiled_engine_decides_every_step_as_hugging_face_does(
    seed: int, played: dict[int, Played], tmp_path: Path
) -> None:
    case = played[seed]
    build_engine(case.checkpoint, "cpu", "fp32", tmp_path / "engine")
    assert_same(run(case, tmp_path / "out.npz", tmp_path / "engine"), case)


def test_the_played_cases_cover_how_a_canvas_and_an_answer_end(played: dict[int, Played]) -> None:
    cases = [played[seed] for seed in SEEDS]
    steps = [(case.case.generation["max_denoising_steps"], case.record.steps) for case in cases]
    assert any(n < most for most, counts in steps for n in counts), "a canvas converges early"
    assert any(n == most for most, counts in steps for n in counts), "a canvas runs out of steps"
    assert any(len(case.record.steps) == case.case.canvases for case in cases)
    stopped = [len(c.record.steps) for c in cases if len(c.record.steps) < c.case.canvases]
    assert stopped, "a stop id ends an answer"
    shares = [a.float().mean() for c in cases for canvas in c.record.accepted for a in canvas]
    assert min(shares) < 0.1 and max(shares) > 0.6
    experts = {played[seed].case.text["num_experts"] > 8 for seed in ENGINE_SEEDS}
    assert experts == {True, False}, "engines with and without a capacity of experts"


@pytest.mark.parametrize("undeclared", ["eos_token_id", "pad_token_id"])
def test_only_the_token_ids_that_generation_config_declares_count(
    undeclared: str, tmp_path: Path
) -> None:
    """HF's `generate` does not look for them in `config.json`, where a service does."""
    common = list(range(0, 320, 5))
    case = replace(draw_case(STOPPING), canvases=2)
    case.generation["eos_token_id"] = common
    case.generation[undeclared] = None
    case.text["eos_token_id"] = common
    played = play(case, tmp_path)
    assert len(played.record.steps) == (2 if undeclared == "eos_token_id" else 1)
    assert_same(run(played, tmp_path / "out.npz"), played)
