from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from dgemma.cli import app
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma.replay import replay
from dgemma_build.demo.vocabulary import PAD
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights

C, N, L, V, P = 3, 4, 8, 30, 11
MAX_NEW_TOKENS = C * L - 3  # the last canvas is not full, and is returned whole all the same
GEOMETRY = geometry_of(canvas_length=L, vocab_size=V, hidden_size=16, sliding_window=5)

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


def write_checkpoint(directory: Path, **generation: Any) -> Path:
    """Random weights and settings under which no answer ends early, but for `generation`."""
    write_weights(directory, GEOMETRY, hf_tensors(random_network(GEOMETRY, seed=5)))
    settings = {
        "max_denoising_steps": N,
        "eos_token_id": [V + 100],
        "sampler_config": {"entropy_bound": 2.0},
        **generation,
    }
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


def tape(**changes: Any) -> Arrays:
    """A tape for the request above with arrays replaced, or (None) left out."""
    rng = np.random.default_rng(2)
    arrays = {
        "input_ids": rng.integers(0, V, P),
        "max_new_tokens": np.array(MAX_NEW_TOKENS),
        "init": rng.integers(0, V, (C, L)),
        "uniform": rng.random((C, N, L)),
        "renoise": rng.integers(0, V, (C, N, L)),
    }
    return {k: np.asarray(v) for k, v in {**arrays, **changes}.items() if v is not None}


def write(directory: Path, arrays: Arrays) -> Path:
    np.savez(directory / "tape.npz", **arrays)
    return directory / "tape.npz"


def play(checkpoint: Path, directory: Path, engine: Path | None = None, **changes: Any) -> Arrays:
    out = directory / "out.npz"
    replay(checkpoint, write(directory, tape(**changes)), out, engine)
    with np.load(out) as file:
        return dict(file)


def refusal(checkpoint: Path, directory: Path, **changes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        replay(checkpoint, write(directory, tape(**changes)), directory / "out.npz")
    assert not (directory / "out.npz").exists()
    return caught.value


# The record


def test_the_record_has_every_step_of_every_canvas(checkpoint: Path, tmp_path: Path) -> None:
    got = play(checkpoint, tmp_path)
    assert {name: array.shape for name, array in got.items()} == {
        "sequences": (P + C * L,),
        "steps": (C,),
        "argmax": (C, N, L),
        "accepted": (C, N, L),
        "entropy": (C, N, L),
    }
    assert got["accepted"].dtype == np.bool_
    assert np.issubdtype(got["entropy"].dtype, np.floating)
    for name in ("sequences", "steps", "argmax"):
        assert np.issubdtype(got[name].dtype, np.integer), name


def test_the_sequence_is_the_prompt_and_each_canvas_last_argmax(
    checkpoint: Path, tmp_path: Path
) -> None:
    got = play(checkpoint, tmp_path)
    assert got["sequences"][:P].tolist() == tape()["input_ids"].tolist()
    last = [got["argmax"][canvas, got["steps"][canvas] - 1] for canvas in range(C)]
    assert got["sequences"][P:].tolist() == np.concatenate(last).tolist()


def test_steps_that_were_not_run_are_marked(tmp_path: Path) -> None:
    early = write_checkpoint(tmp_path, stability_threshold=0, confidence_threshold=100.0)
    got = play(early, tmp_path)
    assert got["steps"].tolist() == [1] * C
    assert (got["argmax"][:, 1:] == -1).all() and (got["argmax"][:, 0] >= 0).all()
    assert not got["accepted"][:, 1:].any() and got["accepted"][:, 0].any(-1).all()
    assert np.isnan(got["entropy"][:, 1:]).all() and (got["entropy"][:, 0] >= 0).all()


def test_steps_that_were_run_are_all_there(tmp_path: Path) -> None:
    fixed = write_checkpoint(tmp_path, confidence_threshold=1e-30)
    got = play(fixed, tmp_path)
    assert got["steps"].tolist() == [N] * C
    assert (got["argmax"] >= 0).all() and not np.isnan(got["entropy"]).any()
    assert got["accepted"].any(-1).all()


def test_after_a_stop_id_everything_is_padding_and_no_canvas_is_run(tmp_path: Path) -> None:
    free = play(write_checkpoint(tmp_path), tmp_path)["sequences"][P:]
    stop = int(free[L + 2])
    first = free.tolist().index(stop)
    stopping = write_checkpoint(tmp_path, eos_token_id=stop, pad_token_id=PAD)
    got = play(stopping, tmp_path)
    run = first // L + 1
    assert got["sequences"].shape == (P + run * L,)
    assert got["sequences"][P : P + first + 1].tolist() == free[: first + 1].tolist()
    assert (got["sequences"][P + first + 1 :] == PAD).all()
    assert (got["steps"][run:] == 0).all() and (got["steps"][:run] > 0).all()
    assert (got["argmax"][run:] == -1).all() and np.isnan(got["entropy"][run:]).all()


def test_a_replay_is_a_function_of_its_tape(checkpoint: Path, tmp_path: Path) -> None:
    once, twice = play(checkpoint, tmp_path), play(checkpoint, tmp_path)
    for name, array in once.items():
        assert np.array_equal(array, twice[name], equal_nan=array.dtype.kind == "f"), name
    other = play(checkpoint, tmp_path, uniform=1 - tape()["uniform"])
    assert not np.array_equal(once["argmax"], other["argmax"])
    other = play(checkpoint, tmp_path, renoise=(tape()["renoise"] + 1) % V)
    assert not np.array_equal(once["argmax"], other["argmax"])
    other = play(checkpoint, tmp_path, init=(tape()["init"] + 1) % V)
    assert not np.array_equal(once["argmax"], other["argmax"])


def test_a_tape_may_be_longer_than_its_request(checkpoint: Path, tmp_path: Path) -> None:
    short = play(checkpoint, tmp_path, max_new_tokens=L)
    assert short["sequences"].shape == (P + L,)
    assert short["argmax"].shape == (1, N, L)
    whole = play(checkpoint, tmp_path)
    assert np.array_equal(short["argmax"][0], whole["argmax"][0])


def test_the_number_of_threads_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    play(checkpoint, tmp_path)
    assert torch.get_num_threads() == before


# Bad tapes


@pytest.mark.parametrize("name", list(tape()))
def test_a_missing_array_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    assert f"lacks {name}" in str(refusal(checkpoint, tmp_path, **{name: None}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("init", np.zeros((C, L - 1), int), r"[3, 7], this request needs [3, 8]"),
        ("init", np.zeros((C - 1, L), int), r"[2, 8], this request needs [3, 8]"),
        ("init", np.zeros(L, int), "[8], this request needs [3, 8]"),
        ("uniform", np.zeros((C, N, L, 1)), "needs [3, 4, 8]"),
        ("uniform", np.zeros((C, N - 1, L)), "[3, 3, 8], this request needs [3, 4, 8]"),
        ("renoise", np.zeros((C, N), int), "needs [3, 4, 8]"),
        ("init", np.full((C, L), V), "ids outside 0..29"),
        ("renoise", np.full((C, N, L), -1), "ids outside 0..29"),
        ("input_ids", np.array([1, V]), "ids outside 0..29"),
        ("input_ids", np.array([], int), "at least one token id"),
        ("input_ids", np.ones((2, 2), int), "one row"),
        ("max_new_tokens", 0, "must be >= 1"),
        ("max_new_tokens", -5, "must be >= 1"),
    ],
)
def test_a_misshapen_or_impossible_array_is_named(
    checkpoint: Path, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    error = refusal(checkpoint, tmp_path, **{name: value})
    assert error.field == f"tape.{name}"
    assert message in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uniform", np.full((C, N, L), np.nan)),
        ("uniform", np.full((C, N, L), 1.5)),
        ("uniform", np.full((C, N, L), -0.5)),
        ("uniform", np.full((C, N, L), "x")),
        ("init", np.full((C, L), 0.5)),
        ("input_ids", np.array(["a"])),
        ("max_new_tokens", np.array([1, 2])),
        ("max_new_tokens", np.array("many")),
    ],
)
def test_an_array_of_other_numbers_is_named(
    checkpoint: Path, tmp_path: Path, name: str, value: Any
) -> None:
    assert name in refusal(checkpoint, tmp_path, **{name: value}).field


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_tape(checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tape.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"tape: .* is not a readable .npz file"):
        replay(checkpoint, path, tmp_path / "out.npz")


def test_a_single_array_is_no_tape(checkpoint: Path, tmp_path: Path) -> None:
    with (tmp_path / "tape.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InvalidRequest):
        replay(checkpoint, tmp_path / "tape.npz", tmp_path / "out.npz")


# The command


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    return result.exit_code, result.output + (result.stderr or "")


def test_the_command_writes_the_record(checkpoint: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path, tape()), tmp_path / "record.npz"
    code, output = command("--checkpoint", checkpoint, "--tape", path, "--out", out)
    assert code == 0, output
    with np.load(out) as file:
        assert np.array_equal(file["argmax"], play(checkpoint, tmp_path)["argmax"])


def test_a_bad_tape_is_one_sentence_and_exit_code_2(checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path, tape(init=np.zeros((1, L), int)))
    code, output = command("--checkpoint", checkpoint, "--tape", path, "--out", tmp_path / "o.npz")
    assert code == 2
    assert "error: tape.init: has shape [1, 8]" in output
    assert "Traceback" not in output


def test_a_directory_without_a_checkpoint_is_exit_code_2(tmp_path: Path) -> None:
    path = write(tmp_path, tape())
    code, output = command("--checkpoint", tmp_path, "--tape", path, "--out", tmp_path / "o.npz")
    assert code == 2
    assert "config.json: no such file" in output


def test_a_missing_tape_is_exit_code_2(checkpoint: Path, tmp_path: Path) -> None:
    code, _ = command(
        *("--checkpoint", checkpoint, "--tape", tmp_path / "none.npz", "--out", tmp_path / "o.npz")
    )
    assert code == 2


def test_an_engine_directory_without_an_engine(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no engine here"):
        play(checkpoint, tmp_path, engine=tmp_path)


def test_an_engine_of_another_model_is_refused(
    checkpoint: Path, tmp_path: Path, demo_engine: Path
) -> None:
    with pytest.raises(ConfigurationError):
        play(checkpoint, tmp_path, engine=demo_engine)


def test_an_out_file_that_cannot_be_written_is_exit_code_2(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, tape())
    code, output = command(
        *("--checkpoint", checkpoint, "--tape", path, "--out", tmp_path / "no" / "o.npz")
    )
    assert code == 2
    assert "error:" in output and "o.npz" in output
