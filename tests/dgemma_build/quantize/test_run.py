from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dgemma_build.quantize.run
from dgemma.model.checkpoint import hf_name, parameter_shapes
from dgemma.precision import policy_of
from dgemma.store_manifest import FILE_NAME
from dgemma.weight_store import WeightStore
from dgemma_build.quantize.reader import Reader
from dgemma_build.quantize.run import Quantized
from tests.dgemma.model.tiny_weights import shard, write_weights
from tests.dgemma_build.quantize.float_checkpoint import (
    BANK,
    PRECISIONS,
    SHARDS,
    SOURCE,
    content,
    neighbours,
    run,
    write,
)
from tests.quantized_checkpoint import GEOMETRY

SHAPES = parameter_shapes(GEOMETRY)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path)


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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_more_than_one_matrix_is_read_at_once(
    checkpoint: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many experts a bank has, and however large the embedding is."""
    read: list[int] = []

    def rows(reader: Reader, name: str, *which: int) -> Tensor:
        tensor = one_after_another(reader, name, *which)
        read.append(tensor.nbytes)
        return tensor

    one_after_another = Reader.rows
    monkeypatch.setattr(Reader, "rows", rows)
    monkeypatch.setattr("dgemma_build.quantize.source.COPIED", 1024)
    run(checkpoint, precision)
    largest = max(SOURCE[hf_name(name)].nbytes for name in SHAPES if ".self_attn." in name)
    assert max(read) <= largest
    assert sum(read) == sum(tensor.nbytes for tensor in SOURCE.values())


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
    monkeypatch.setattr("dgemma_build.quantize.digest._DEFINITION", (dgemma_build.quantize.run,))
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
