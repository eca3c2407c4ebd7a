from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights
from tests.dgemma_build.quantize.float_checkpoint import (
    BANK,
    PRECISIONS,
    SOURCE,
    neighbours,
    refusal,
    run,
    write,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp7", ""])
def test_a_precision_without_stores_is_refused(checkpoint: Path, precision: str) -> None:
    assert "known: fp8, int4, nvfp4, bf16" in refusal(checkpoint, precision)
    assert neighbours(checkpoint) == set()


def test_an_unknown_policy_is_refused(checkpoint: Path) -> None:
    assert "int4 has no policy 'some'; known: feed_forward, all, experts" in refusal(
        checkpoint, policy="some"
    )


@pytest.mark.parametrize("name", [BANK, "model.decoder.norm.weight"])
def test_missing_and_unknown_tensors_are_named(tmp_path: Path, name: str) -> None:
    assert f"missing tensors: {name}" in refusal(write(tmp_path, **{name: None}))
    odd = write(tmp_path, odd=torch.ones(1))
    assert "unknown tensors: odd" in refusal(odd)
    assert neighbours(odd) == set()


def test_a_quantised_tensor_without_a_statement_is_named(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, **{BANK: SOURCE[BANK].to(torch.float8_e4m3fn)}))
    assert f"tensor {BANK} is F8_E4M3, but config.json states no quantization" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [BANK, "model.decoder.embed_tokens.weight"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_are_no_numbers_are_named(
    tmp_path: Path, name: str, value: float, precision: str
) -> None:
    broken = SOURCE[name].clone()
    broken.view(-1)[-3] = value
    checkpoint = write(tmp_path, **{name: broken})
    assert f"tensor {name}: holds NaN or infinity" in refusal(checkpoint, precision)
    assert neighbours(checkpoint) == set()


def test_what_does_not_fit_into_bf16_is_named(tmp_path: Path) -> None:
    name = "model.decoder.norm.weight"
    large = SOURCE[name].float()
    large[5] = 3.4e38
    assert f"tensor {name}: holds NaN or infinity" in refusal(write(tmp_path, **{name: large}))


def test_columns_that_do_not_fill_groups_are_refused_by_name(tmp_path: Path) -> None:
    geometry = geometry_of(hidden_size=64, vocab_size=40)  # experts of width 8
    tensors = hf_tensors(random_network(geometry))
    checkpoint = write_weights(tmp_path / "checkpoint", geometry, tensors)
    message = refusal(checkpoint, policy="all")
    assert message.startswith("layers.0.self_attn.o_proj.weight: int4 needs a matrix whose columns")
    run(checkpoint, "fp8")


def test_a_directory_that_holds_something_else_is_not_overwritten(checkpoint: Path) -> None:
    out = checkpoint.parent / "store"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "store: exists and holds no store; choose another --out" in refusal(checkpoint)
    out.rename(checkpoint.parent / "store.partial")
    assert "store.partial: exists and holds no unfinished store" in refusal(checkpoint)
    assert (checkpoint.parent / "store.partial" / "thesis.txt").read_text() == "years of work"


def test_a_file_in_place_of_the_directory(checkpoint: Path) -> None:
    (checkpoint.parent / "store").write_text("years of work")
    assert "exists and holds no store" in refusal(checkpoint)


def test_an_empty_directory_may_be_filled(checkpoint: Path) -> None:
    (checkpoint.parent / "store").mkdir()
    assert not run(checkpoint).up_to_date


def test_a_disk_without_room_is_said_before_anything_is_written(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**20))
    message = refusal(checkpoint)
    assert "0.1 GB are needed and 0.0 GB are free; free some space or choose" in message
    monkeypatch.undo()
    assert not run(checkpoint).up_to_date
