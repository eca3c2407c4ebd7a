from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import Checkpoint
from dgemma_build.quantize.reader import Reader, is_float
from tests.dgemma.model.tiny_weights import shard

TENSORS = {
    "bank": torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 4),
    "half": torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "norm": torch.linspace(-1, 1, 7),
    "scalar": torch.tensor(2.5),
    "one": torch.tensor([3.5], dtype=torch.float16),
    "bytes": torch.arange(30, dtype=torch.uint8).view(5, 6),
    "fp8": torch.linspace(-9, 9, 8).view(2, 4).to(torch.float8_e4m3fn),
}


@pytest.fixture(params=[1, 3])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Checkpoint:
    save_file(TENSORS, tmp_path / "model.safetensors")
    if request.param > 1:
        shard(tmp_path, request.param)
    return Checkpoint(tmp_path)


def same(got: Tensor, wanted: Tensor) -> bool:
    return got.dtype == wanted.dtype and torch.equal(got.float(), wanted.float())


def test_a_tensor_is_read_as_its_rows(checkpoint: Checkpoint) -> None:
    with Reader.open(checkpoint) as reader:
        for name, tensor in TENSORS.items():
            columns = tensor.shape[-1] if tensor.ndim else 1
            assert same(reader.rows(name), tensor.reshape(-1, columns)), name
            assert reader.entries[name].spec.shape == tuple(tensor.shape)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (2, 5), (5, 6), (3, 3)])
def test_some_rows_of_a_bank(checkpoint: Checkpoint, start: int, stop: int) -> None:
    with Reader.open(checkpoint) as reader:
        assert same(reader.rows("bank", start, stop), TENSORS["bank"].view(6, 4)[start:stop])


def test_what_is_read_may_be_changed(checkpoint: Checkpoint) -> None:
    with Reader.open(checkpoint) as reader:
        reader.rows("bank").zero_()
        assert same(reader.rows("bank"), TENSORS["bank"].view(6, 4))


def test_weights_as_they_were_trained_are_floats(checkpoint: Checkpoint) -> None:
    with Reader.open(checkpoint) as reader:
        floats = {name for name, entry in reader.entries.items() if is_float(entry)}
    assert floats == {"bank", "half", "norm", "scalar", "one"}


def test_a_file_that_was_cut_off_meanwhile_is_named(checkpoint: Checkpoint) -> None:
    with Reader.open(checkpoint) as reader:
        entry = reader.entries["half"]
        entry.path.write_bytes(entry.path.read_bytes()[: entry.offset + 8])
        with pytest.raises(ConfigurationError, match=rf"{entry.path.name}: tensor half: the file"):
            reader.rows("half")


def test_a_file_without_tensors_is_an_empty_checkpoint(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors", {"format": "pt"})
    with Reader.open(Checkpoint(tmp_path)) as reader:
        assert reader.entries == {}
