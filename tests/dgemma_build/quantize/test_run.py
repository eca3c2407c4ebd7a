from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dgemma_build.quantize.run
import dgemma_build.quantize.shards
from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import hf_name, parameter_shapes
from dgemma.precision import policy_of
from dgemma.store_manifest import FILE_NAME, StoreManifest
from dgemma.weight_store import WeightStore
from dgemma_build.quantize.run import Quantized, quantize_checkpoint
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, shard, write_weights
from tests.quantized_checkpoint import GEOMETRY

SHAPES = parameter_shapes(GEOMETRY)
SOURCE = {name: t.bfloat16() for name, t in hf_tensors(random_network(GEOMETRY)).items()}
PRECISIONS = ("fp8", "int4", "nvfp4", "bf16")
SHARDS = ["layer-00.safetensors", "layer-01.safetensors", "rest.safetensors"]
BANK = "model.decoder.layers.1.experts.gate_up_proj"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(directory: Path, **changed: Tensor | None) -> Path:
    """The checkpoint with tensors replaced, added or (None) left out."""
    tensors = {name: t for name, t in {**SOURCE, **changed}.items() if t is not None}
    return write_weights(directory / "checkpoint", GEOMETRY, tensors)


def run(checkpoint: Path, precision: str = "int4", **more: Any) -> Quantized:
    return quantize_checkpoint(checkpoint, precision, checkpoint.parent / "store", **more)


def refusal(checkpoint: Path, precision: str = "int4", **more: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        run(checkpoint, precision, **more)
    return str(caught.value)


def neighbours(checkpoint: Path) -> set[str]:
    return {path.name for path in checkpoint.parent.iterdir()} - {"checkpoint"}


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# What is written


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_store_is_a_shard_per_layer_the_rest_and_a_manifest(
    checkpoint: Path, precision: str
) -> None:
    done = run(checkpoint, precision)
    assert not done.up_to_date
    store = WeightStore.open(checkpoint.parent / "store", deep=True)
    assert store.manifest == done.manifest
    assert set(content(store.directory)) == {*SHARDS, FILE_NAME}
    assert (store.manifest.precision, store.manifest.geometry) == (precision, GEOMETRY)
    assert store.manifest.policy == policy_of(precision)
    assert sorted(store.manifest.parameters) == sorted(SHAPES)
    wanted = policy_of(precision).tensors(SHAPES)
    assert {name: record.spec for name, record in store.manifest.tensors.items()} == wanted
    for name, record in store.manifest.tensors.items():
        layer = name.split(".")[1] if name.startswith("layers.") else None
        assert record.file == (f"layer-0{layer}.safetensors" if layer else "rest.safetensors")
        assert record.offset % record.spec.torch_dtype.itemsize == 0, "not aligned"
    assert neighbours(checkpoint) == {"store"}


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp8", 0.028), ("int4", 0.13), ("nvfp4", 0.11), ("bf16", 0.0)]
)
def test_weights_are_the_checkpoints_up_to_the_precisions_error(
    checkpoint: Path, precision: str, limit: float
) -> None:
    manifest = run(checkpoint, precision).manifest
    store = WeightStore.open(checkpoint.parent / "store")
    for name, values in store.parameters():
        wanted = SOURCE[hf_name(name)].float()
        assert tuple(values.shape) == SHAPES[name]
        error = float((values.float() - wanted).norm() / wanted.norm())
        quantized = manifest.policy.format_of(name).is_quantized
        assert error <= (limit if quantized else 0), name
        assert not quantized or error > 0.2 * limit, name


def test_each_expert_and_each_half_has_a_scale_of_its_own(tmp_path: Path) -> None:
    bank = SOURCE[BANK].clone()
    bank[1, :64] *= 16  # the gate of the second expert
    run(write(tmp_path, **{BANK: bank}), "nvfp4")
    store = WeightStore.open(tmp_path / "store")
    scales = store.tensor("layers.1.experts.gate_up_proj.row_scale")
    largest = bank.float().unflatten(1, (2, 64)).abs().amax((2, 3))  # [E, 2]
    torch.testing.assert_close(scales.unflatten(1, (2, 64))[:, :, 0, 0], largest / 2688)


def test_a_matrix_larger_than_what_is_encoded_at_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(checkpoint, "nvfp4")
    whole = content(checkpoint.parent / "store")
    shutil.rmtree(checkpoint.parent / "store")
    monkeypatch.setattr("dgemma_build.quantize.source.ENCODED", 64 * 7)
    monkeypatch.setattr("dgemma_build.quantize.source.COPIED", 64 * 3)
    run(checkpoint, "nvfp4")
    assert content(checkpoint.parent / "store") == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_floats_are_quantised_too(tmp_path: Path, dtype: torch.dtype) -> None:
    converted = {name: tensor.to(dtype) for name, tensor in SOURCE.items()}
    run(write_weights(tmp_path / "checkpoint", GEOMETRY, converted))
    got = content(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    run(write(tmp_path, **{name: tensor.bfloat16() for name, tensor in converted.items()}))
    assert {name: got[name] for name in SHARDS} == {
        name: (tmp_path / "store" / name).read_bytes() for name in SHARDS
    }


def test_a_sharded_checkpoint_gives_the_same_store(checkpoint: Path) -> None:
    first = run(checkpoint).manifest
    shutil.rmtree(checkpoint.parent / "store")
    shard(checkpoint, 5)
    assert run(checkpoint).manifest.files == first.files


def test_experts_alone_when_asked_for(checkpoint: Path) -> None:
    manifest = run(checkpoint, "int4", policy="experts").manifest
    assert manifest.policy == policy_of("int4", "experts")
    assert manifest.tensors["layers.0.mlp.up_proj.weight"].dtype == "BF16"


def test_progress_counts_bytes_and_ends_at_its_total(checkpoint: Path) -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        heard.append((what, done, total))

    manifest = run(checkpoint, progress=progress).manifest
    run(checkpoint, progress=progress)
    stored = sum(record.spec.nbytes for record in manifest.tensors.values())
    totals = {"weights": stored, "store": manifest.size}
    for what in ("checkpoint", "weights", "store"):
        mine = [(done, total) for name, done, total in heard if name == what]
        if what != "checkpoint":
            assert mine == sorted(mine)
            assert mine[-1] == (totals[what], totals[what])
        assert mine[-1][0] == mine[-1][1]


# When nothing is to be done


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_what_is_up_to_date_is_left_alone(checkpoint: Path) -> None:
    first = run(checkpoint)
    before = stamps(checkpoint.parent / "store")
    assert run(checkpoint) == Quantized(first.manifest, up_to_date=True)
    assert stamps(checkpoint.parent / "store") == before
    assert neighbours(checkpoint) == {"store"}


def test_files_that_have_not_changed_are_not_hashed_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(checkpoint)
    monkeypatch.setattr("dgemma_build.quantize.digest.sha256", None)
    assert run(checkpoint).up_to_date


def test_a_checkpoint_that_was_moved_or_copied_is_the_same(checkpoint: Path) -> None:
    run(checkpoint)
    copy = checkpoint.parent / "elsewhere"
    shutil.copytree(checkpoint, copy, copy_function=shutil.copyfile)
    assert run(copy).up_to_date


def test_other_weights_are_another_store(checkpoint: Path) -> None:
    run(checkpoint)
    write(checkpoint.parent, **{BANK: SOURCE[BANK] * 2})
    assert not run(checkpoint).up_to_date
    values = WeightStore.open(checkpoint.parent / "store").parameter(BANK[len("model.decoder.") :])
    torch.testing.assert_close(values, 2 * SOURCE[BANK].float(), rtol=0, atol=0.3)


@pytest.mark.parametrize("more", [{"precision": "fp8"}, {"policy": "experts"}])
def test_another_precision_or_policy_is_another_store(
    checkpoint: Path, more: dict[str, str]
) -> None:
    run(checkpoint)
    assert not run(checkpoint, **more).up_to_date


def test_another_way_of_rounding_is_another_store(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(checkpoint)
    other = dgemma_build.quantize.shards
    monkeypatch.setattr("dgemma_build.quantize.encode", other)
    assert not run(checkpoint).up_to_date


@pytest.mark.parametrize("name", [*SHARDS, FILE_NAME])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_store_is_written_again(checkpoint: Path, name: str, damage: str) -> None:
    run(checkpoint)
    whole = content(checkpoint.parent / "store")
    path = checkpoint.parent / "store" / name
    if damage == "flipped":
        data = bytearray(whole[name])
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(whole[name][:-20])
    elif name != FILE_NAME:
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    assert not run(checkpoint).up_to_date
    assert content(checkpoint.parent / "store") == whole


# Interruption


class Interrupted(BaseException):
    """As KeyboardInterrupt is, without stopping pytest."""


def interrupted(checkpoint: Path, share: float) -> None:
    """A run that ends when this share of the weights is written."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "weights" and done >= share * total:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(checkpoint, progress=progress)


def written_by(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that a run writes."""
    names: list[str] = []

    def write_shard(path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return dgemma_build.quantize.shards.write_shard(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dgemma_build.quantize.run, "write_shard", write_shard)
        run(checkpoint)
    return names


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.97, 1.0])
def test_an_interrupted_run_is_gone_on_with_to_the_same_bytes(
    checkpoint: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(checkpoint)
    whole = content(checkpoint.parent / "store")
    shutil.rmtree(checkpoint.parent / "store")
    interrupted(checkpoint, share)
    assert neighbours(checkpoint) == {"store.partial"}
    with pytest.raises(ConfigurationError, match="no weight store here"):
        StoreManifest.read(checkpoint.parent / "store.partial")
    left = set(content(checkpoint.parent / "store.partial")) - {"journal.json"}
    assert left <= set(SHARDS), "half a shard was left"
    assert set(written_by(checkpoint, monkeypatch)) == set(SHARDS) - left
    assert content(checkpoint.parent / "store") == whole
    assert neighbours(checkpoint) == {"store"}


def test_progress_of_a_resumed_run_begins_where_the_other_ended(checkpoint: Path) -> None:
    interrupted(checkpoint, 0.97)
    heard: list[int] = []
    run(checkpoint, progress=lambda what, done, total: heard.append(done * (what == "weights")))
    first, total = next(done for done in heard if done), max(heard)
    assert first > 0.3 * total


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_finished_shard_that_was_damaged_is_written_again(
    checkpoint: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(checkpoint, 0.97)
    path = checkpoint.parent / "store.partial" / SHARDS[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    assert SHARDS[0] in written_by(checkpoint, monkeypatch)
    WeightStore.open(checkpoint.parent / "store", deep=True)


def test_shards_of_another_checkpoint_or_precision_are_not_gone_on_with(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(checkpoint, 0.97)
    write(checkpoint.parent, **{BANK: SOURCE[BANK] * 2})
    assert written_by(checkpoint, monkeypatch) == SHARDS
    shutil.rmtree(checkpoint.parent / "store")
    interrupted(checkpoint, 0.97)
    run(checkpoint, "fp8")
    WeightStore.open(checkpoint.parent / "store", deep=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "x"}'])
def test_a_broken_journal_is_refused_where_there_are_shards(
    checkpoint: Path, content: bytes
) -> None:
    """Nobody knows then whose they are, and nothing that is not ours is removed."""
    interrupted(checkpoint, 0.97)
    (checkpoint.parent / "store.partial" / "journal.json").write_bytes(content)
    assert "store.partial: exists and holds no unfinished store" in refusal(checkpoint)


def test_what_was_killed_before_its_first_shard_is_cleared_away(checkpoint: Path) -> None:
    work = checkpoint.parent / "store.partial"
    work.mkdir()
    (work / "journal.json.partial").write_bytes(b"{")
    run(checkpoint)
    assert neighbours(checkpoint) == {"store"}


def test_a_run_that_was_killed_leaves_half_a_shard_which_is_cleared_away(checkpoint: Path) -> None:
    interrupted(checkpoint, 0.97)
    work = checkpoint.parent / "store.partial"
    (work / "rest.safetensors.partial").write_bytes(b"half")
    (work / FILE_NAME).write_bytes(b"{}")
    run(checkpoint)
    assert set(content(checkpoint.parent / "store")) == {*SHARDS, FILE_NAME}


def test_an_interrupted_run_leaves_the_older_store(checkpoint: Path) -> None:
    old = run(checkpoint).manifest
    write(checkpoint.parent, **{BANK: SOURCE[BANK] * 2})
    interrupted(checkpoint, 0.5)
    assert StoreManifest.read(checkpoint.parent / "store") == old
    old.verify(checkpoint.parent / "store")
    assert not run(checkpoint).up_to_date
    assert neighbours(checkpoint) == {"store"}


def test_two_runs_do_not_write_one_store(checkpoint: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "weights" and done == total:
            assert "another run is writing this store" in refusal(checkpoint)

    run(checkpoint, progress=progress)
    WeightStore.open(checkpoint.parent / "store", deep=True)


# What is refused


@pytest.mark.parametrize("precision", ["fp32", "fp7", ""])
def test_a_precision_without_stores_is_refused(checkpoint: Path, precision: str) -> None:
    assert "known: fp8, int4, nvfp4, bf16" in refusal(checkpoint, precision)
    assert neighbours(checkpoint) == set()


def test_an_unknown_policy_is_refused(checkpoint: Path) -> None:
    assert "int4 has no policy 'some'; known: all, experts" in refusal(checkpoint, policy="some")


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
    message = refusal(checkpoint)
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


def test_a_disk_that_fills_up_meanwhile_keeps_what_is_finished(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *rest: Any) -> Any:
        if path.name == SHARDS[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return dgemma_build.quantize.shards.write_shard(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dgemma_build.quantize.run, "write_shard", full)
        assert "no space left; free some and run the same command again" in refusal(checkpoint)
    assert written_by(checkpoint, monkeypatch) == SHARDS[1:]
