"""The tail works where its engine does: on torch's meta device, which refuses tensors of others."""

from __future__ import annotations

import pytest
import torch

from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Tail
from tests.dgemma.hand_made import SAMPLING

DEVICE = torch.device("meta")
V, D, L = 96, 16, 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_a_step_is_anywhere_else(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[torch.Size] = []

    def read(tensor: torch.Tensor) -> list[list[float]]:
        reads.append(tensor.shape)
        return [[0.5] * tensor.shape[1]] * tensor.shape[0]

    monkeypatch.setattr(torch.Tensor, "tolist", read)
    embedding = torch.empty(V, D, dtype=dtype, device=DEVICE)
    tail = Tail(Head(embedding, 30.0), SeededDraws(L, V, DEVICE))
    pinned = torch.tensor([5, *[-1] * (L - 1)])
    rows = [
        (tail.begin(block, SAMPLING, pins), SAMPLING) for block, pins in ((0, None), (1, pinned))
    ]
    hidden = torch.empty(2, L, D, dtype=dtype, device=DEVICE)
    reads.clear()
    for _ in range(2):
        tail.step(hidden, rows)
    assert reads == [(2, 2)] * 2, "the host reads once in a step"
    for canvas, _ in rows:
        kept = (canvas.ids, canvas.soft, canvas.argmax, canvas.accepted, canvas.entropy)
        assert all(tensor is not None and tensor.device == DEVICE for tensor in kept)
        assert canvas.soft is not None and canvas.soft.dtype == dtype
        assert canvas.states.device == DEVICE


def test_what_is_pinned_comes_to_the_device_with_the_canvas() -> None:
    tail = Tail(Head(torch.empty(V, D, device=DEVICE), 30.0), SeededDraws(L, V, DEVICE))
    canvas = tail.begin(0, SAMPLING, torch.full((L,), -1))
    assert canvas.pinned is not None and canvas.pinned.device == DEVICE
