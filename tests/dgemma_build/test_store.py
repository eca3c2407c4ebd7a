from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dgemma_build.store import Place, raw, write_store

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.tensor([1.5]),
    "c.é": torch.linspace(-3, 3, 35).view(5, 1, 7),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def write(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Place]:
    return write_store(path, SHAPES, dtype, iter(TENSORS.items()))


def test_the_store_is_a_safetensors_file(tmp_path: Path) -> None:
    write(tmp_path / "store")
    loaded = load_file(tmp_path / "store")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_written_in_the_stores_type(tmp_path: Path, dtype: torch.dtype) -> None:
    write(tmp_path / "store", dtype)
    with safe_open(tmp_path / "store", "pt") as file:
        for name, tensor in TENSORS.items():
            got = file.get_tensor(name)
            assert got.dtype == dtype
            assert torch.equal(got, tensor.to(dtype))


def test_places_are_where_the_bytes_stand(tmp_path: Path) -> None:
    places = write(tmp_path / "store")
    content = (tmp_path / "store").read_bytes()
    for name, place in places.items():
        wanted = TENSORS[name].contiguous().numpy().tobytes()
        assert content[place.offset : place.offset + place.length] == wanted
    assert max(place.offset + place.length for place in places.values()) == len(content)


def test_the_data_begins_aligned(tmp_path: Path) -> None:
    places = write(tmp_path / "store")
    (header,) = struct.unpack("<Q", (tmp_path / "store").read_bytes()[:8])
    assert (8 + header) % 64 == 0
    assert min(place.offset for place in places.values()) == 8 + header


def test_tensors_that_are_no_contiguous_memory(tmp_path: Path) -> None:
    turned = torch.arange(12, dtype=torch.float32).view(3, 4).T
    write_store(tmp_path / "store", {"t": (4, 3)}, torch.float32, iter([("t", turned)]))
    assert torch.equal(load_file(tmp_path / "store")["t"], turned)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (0, 4)])
def test_bytes_of_a_tensor_that_repeats_one_element(shape: tuple[int, ...]) -> None:
    scale = torch.tensor(2.5).expand(*shape)
    assert bytes(raw(scale)) == scale.clone().numpy().tobytes()


def test_bytes_are_the_tensors_own_where_it_is_contiguous() -> None:
    tensor = torch.zeros(2, 3)
    raw(tensor)[3] = 0x3F
    assert tensor[0, 0] == 0.5


def test_each_tensor_is_written_before_the_next_is_asked_for(tmp_path: Path) -> None:
    written: list[int] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for index, item in enumerate(TENSORS.items()):
            assert len(written) == index
            yield item

    write_store(tmp_path / "store", SHAPES, torch.float32, tensors(), written.append)
    assert written == [4 * tensor.numel() for tensor in TENSORS.values()]


@pytest.mark.parametrize("tensors", [[("b", torch.ones(1))], list(TENSORS.items())[:2]])
def test_tensors_in_another_order_or_too_few_are_a_mistake(
    tmp_path: Path, tensors: list[tuple[str, Tensor]]
) -> None:
    with pytest.raises((AssertionError, ValueError)):
        write_store(tmp_path / "store", SHAPES, torch.float32, iter(tensors))
