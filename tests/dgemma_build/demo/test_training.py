from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from tokenizers import Tokenizer
from typer.testing import CliRunner

from dgemma.engine.base import Capacity
from dgemma.engine.torch_reference import TorchReference
from dgemma.generation import GenerationDefaults
from dgemma.model.checkpoint import Checkpoint
from dgemma_build.demo import train
from dgemma_build.demo.export import main as export
from dgemma_build.demo.net import Shape
from dgemma_build.demo.optimizer import Muon, orthogonalise, schedule
from dgemma_build.demo.tasks import SudokuSource
from dgemma_build.demo.train import Training
from dgemma_build.demo.vocabulary import to_ids

TINY = Shape(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    head_dim=8,
    global_head_dim=8,
    moe_intermediate_size=8,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of four on a network so small that a step takes milliseconds; one thread."""
    monkeypatch.setattr(train, "BATCH", 4)
    monkeypatch.setattr(train, "COPIES", 2)
    monkeypatch.setattr(train, "Shape", lambda: TINY)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source() -> SudokuSource:
    return SudokuSource(64, seed=1, processes=1)


def run(directory: Path, source: SudokuSource, steps: int, total: int = 4) -> Training:
    directory.mkdir(exist_ok=True)
    training = Training(directory, seed=1)
    while training.done < steps:
        assert np.isfinite(training.step(source, total, count_share=0.5))
    training.save()
    return training


def test_a_training_that_was_stopped_goes_on_where_it_stopped(
    tmp_path: Path, source: SudokuSource
) -> None:
    stopped = run(tmp_path / "a", source, 2)
    resumed = Training(tmp_path / "a", seed=1)
    assert resumed.done == 2
    for mine, theirs in (
        (resumed.net.state_dict(), stopped.net.state_dict()),
        (resumed.average, stopped.average),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    for a, b in zip(resumed.optimizers, stopped.optimizers, strict=True):
        _assert_equal(a.state_dict()["state"], b.state_dict()["state"])


@pytest.mark.parametrize(
    ("units", "wanted"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_products_are_in_bf16_only_where_the_cpu_has_units_for_it(
    units: dict[str, bool],
    wanted: torch.dtype,
    tmp_path: Path,
    source: SudokuSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.dtype] = []

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        return train.loss(*arguments)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    training = Training(tmp_path, seed=1)
    training.loss = watched
    training.step(source, total=4, count_share=1.0)
    assert seen == [wanted]


def test_a_resumed_training_has_done_as_much_as_an_uninterrupted_one(
    tmp_path: Path, source: SudokuSource
) -> None:
    run(tmp_path / "a", source, 2)
    resumed = run(tmp_path / "a", source, 4)
    whole = run(tmp_path / "b", source, 4)
    assert resumed.done == whole.done == 4
    saved = [torch.load(tmp_path / name / "state.pt") for name in "ab"]
    assert saved[0].keys() == saved[1].keys()
    assert saved[0]["step"] == saved[1]["step"] == 4
    for a, b in zip(saved[0]["optimizers"], saved[1]["optimizers"], strict=True):
        assert a["state"].keys() == b["state"].keys()
        counts = [
            [float(s["step"]) for s in each["state"].values() if "step" in s] for each in (a, b)
        ]
        assert counts[0] == counts[1]


def test_steps_change_the_network_and_the_average_follows(
    tmp_path: Path, source: SudokuSource
) -> None:
    training = Training(tmp_path, seed=1)
    before = {k: v.clone() for k, v in training.net.state_dict().items()}
    training.step(source, 100, count_share=0.5)
    after = training.net.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    # Nothing reads the last layer's output in the encoder, and in the decoder a norm undoes its
    # scale, so that only rounding decides whether that one changes.
    assert before.keys() - changed - {"layers.1.layer_scalar"} == {"layers.1.encoder_scalar"}
    for name in changed:
        wanted = before[name].lerp(after[name], train.AVERAGING)
        torch.testing.assert_close(training.average[name], wanted)


def test_a_seed_decides_the_first_weights(tmp_path: Path) -> None:
    first, same = (Training(tmp_path, seed=1).net.embed_tokens.weight for _ in range(2))
    other = Training(tmp_path, seed=2).net.embed_tokens.weight
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_an_interrupted_save_leaves_the_older_state(
    tmp_path: Path, source: SudokuSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run(tmp_path, source, 1)

    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half a state")
        raise KeyboardInterrupt

    training.step(source, 4, 0.5)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch, "save", half)
        training.save()
    assert Training(tmp_path, seed=1).done == 1


def test_learning_a_batch_lowers_its_loss(tmp_path: Path, source: SudokuSource) -> None:
    training = Training(tmp_path, seed=1)
    losses = [training.step(source, 10_000, count_share=1.0) for _ in range(30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_command_stops_at_its_steps_and_goes_on(
    tmp_path: Path, source: SudokuSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SudokuSource", lambda grids, seed: source)
    monkeypatch.setattr(train, "report", lambda net, unseen: "skipped")
    app = typer.Typer()
    app.command()(train.main)
    for steps in (2, 2, 3):
        result = CliRunner().invoke(app, ["--run", str(tmp_path), "--steps", str(steps)])
        assert result.exit_code == 0, result.output
        assert torch.load(tmp_path / "state.pt")["step"] == steps


def test_an_export_is_a_checkpoint_that_loads(
    tmp_path: Path, source: SudokuSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run(tmp_path / "run", source, 2)
    out = tmp_path / "checkpoint"
    monkeypatch.setattr("dgemma_build.demo.export.Shape", lambda: TINY)
    monkeypatch.setattr(sys, "argv", ["export", "--run", str(tmp_path / "run"), "--out", str(out)])
    export()
    loaded = TorchReference.from_checkpoint(Checkpoint(out), Capacity(1, 200, 2))
    assert torch.equal(loaded.embedding(), training.average["embed_tokens.weight"])
    assert loaded.geometry.canvas_length == TINY.canvas_length
    defaults = GenerationDefaults.from_checkpoint(out)
    assert (defaults.t_min, defaults.t_max, defaults.entropy_bound) == (0.4, 0.8, 0.1)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.encode("é", add_special_tokens=False).ids == to_ids("é")


def _assert_equal(a: dict[int, dict[str, Any]], b: dict[int, dict[str, Any]]) -> None:
    assert a.keys() == b.keys()
    for index, state in a.items():
        assert all(torch.equal(value, b[index][name]) for name, value in state.items())


# The optimizer


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 20), (2, 20, 5)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(
    shape: tuple[int, int, int],
) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(g))
    assert values.shape[-1] == min(shape[1:])
    assert bool((values < 1.3).all()) and float(values.median()) > 0.6


def test_matrices_of_one_shape_are_stepped_independently() -> None:
    torch.manual_seed(0)
    values, gradients = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    together = [torch.nn.Parameter(value.clone()) for value in values]
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient.clone()
    Muon(together, lr=0.1).step()
    for value, gradient, stepped in zip(values, gradients, together, strict=True):
        alone = torch.nn.Parameter(value.clone())
        alone.grad = gradient.clone()
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(alone, stepped)
        assert not torch.equal(alone, value)


def test_the_schedule_rises_stays_and_falls_to_zero() -> None:
    rates = [schedule(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[199] == rates[700] == 1.0
    assert rates[850] == pytest.approx(0.5)
    assert rates[1000] == 0.0
    assert min(rates) >= 0
