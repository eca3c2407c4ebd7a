from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.engine.torch_reference import TorchReference
from dgemma.geometry import Geometry
from dgemma.model.checkpoint import Checkpoint
from dgemma.tail.statistics import Head
from dgemma_build.demo.export import config, hf_tensors
from dgemma_build.demo.net import DemoNet, Shape

SHAPES = {
    "the demo's": Shape(),
    "a window shorter than a canvas": Shape(
        hidden_size=32,
        num_hidden_layers=3,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        sliding_window=10,
        canvas_length=24,
        top_k_experts=1,
        partial_rotary_factor=0.25,
    ),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def net(request: pytest.FixtureRequest) -> DemoNet:
    """Random weights, none of them neutral."""
    torch.manual_seed(0)
    made = DemoNet(request.param)
    for parameter in made.parameters():
        if parameter.ndim < 2:
            parameter.data += 0.2 * torch.randn(parameter.shape)
        parameter.requires_grad_(False)
    return made


@pytest.fixture
def reference(net: DemoNet, tmp_path: Path) -> TorchReference:
    """`dgemma.model.Network` with the same weights, by way of a checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps(config(net.shape)))
    save_file(hf_tensors(net.state_dict()), tmp_path / "model.safetensors")
    capacity = Capacity(slots=2, context=6 * net.shape.canvas_length, rows=4)
    return TorchReference.from_checkpoint(Checkpoint(tmp_path), capacity)


def chunks(context: Tensor, slot: int, length: int) -> list[Row]:
    rows = []
    for start in range(0, len(context), length):
        ids = context[start : start + length]
        padded = torch.nn.functional.pad(ids, (0, length - len(ids)))
        rows.append(Row(padded, slot, start, len(ids), denoise=False))
    return rows


def logits_of(reference: TorchReference, hidden: Tensor) -> Tensor:
    head = reference.embedding()
    cap = reference.geometry.final_logit_softcapping
    return torch.tanh(hidden @ head.T / cap) * cap


def test_the_state_dict_is_a_checkpoint(reference: TorchReference, net: DemoNet) -> None:
    geometry = reference.geometry
    assert (geometry.hidden_size, geometry.canvas_length) == (
        net.shape.hidden_size,
        net.shape.canvas_length,
    )
    assert [layer.is_full for layer in geometry.layers] == [
        net.shape.is_full(i) for i in range(net.shape.num_hidden_layers)
    ]


@pytest.mark.parametrize("canvases", [0.0, 1.0, 2.3])
@pytest.mark.parametrize("believing", [False, True])
def test_both_networks_give_the_same_logits(
    net: DemoNet, reference: TorchReference, canvases: float, believing: bool
) -> None:
    """A context of one token, of one canvas exactly, and of two canvases and some more."""
    length, vocab = net.shape.canvas_length, net.shape.vocab_size
    size = max(1, int(canvases * length))
    generator = torch.Generator().manual_seed(1)
    context = torch.randint(vocab, (1, size), generator=generator)
    canvas = torch.randint(vocab, (1, length), generator=generator)
    belief = torch.randn(1, length, vocab, generator=generator)
    soft = net.soften(belief) if believing else torch.zeros(1, length, net.shape.hidden_size)

    kv, _ = net.encode(context, torch.tensor([size]))
    wanted, _ = net.denoise(canvas, soft, kv, torch.tensor([size]))
    for row in chunks(context[0], 1, length):
        reference.forward([row])
    hidden = reference.forward([Row(canvas[0], 1, size, length, True, soft[0])])
    torch.testing.assert_close(logits_of(reference, hidden), wanted, rtol=1e-3, atol=1e-3)
    whole = Head(reference.embedding(), net.shape.final_logit_softcapping)
    p = whole.probabilities(hidden, torch.ones(1, 1, 1))
    torch.testing.assert_close(p, wanted.softmax(-1), rtol=1e-3, atol=1e-4)


def test_padding_behind_a_context_is_not_seen(net: DemoNet) -> None:
    length, vocab = net.shape.canvas_length, net.shape.vocab_size
    context = torch.randint(vocab, (2, 40))
    context[1, :25] = context[0, :25]
    canvas = torch.randint(vocab, (1, length)).expand(2, -1)
    soft = torch.zeros(2, length, net.shape.hidden_size)
    start = torch.tensor([25, 25])
    kv, _ = net.encode(context, start)
    logits, _ = net.denoise(canvas, soft, kv, start)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_several_canvases_share_a_context(net: DemoNet) -> None:
    length, vocab = net.shape.canvas_length, net.shape.vocab_size
    context, start = torch.randint(vocab, (2, 30)), torch.tensor([30, 12])
    canvases = torch.randint(vocab, (4, length))
    soft = torch.zeros(4, length, net.shape.hidden_size)
    kv, _ = net.encode(context, start)
    together, _ = net.denoise(canvases, soft, kv, start)
    for index in range(4):
        owner = slice(index // 2, index // 2 + 1)
        own = [(k[owner], v[owner]) for k, v in kv]
        alone, _ = net.denoise(canvases[index : index + 1], soft[:1], own, start[owner])
        torch.testing.assert_close(together[index], alone[0], rtol=1e-4, atol=1e-4)


def test_a_soft_embedding_of_a_certain_token_is_its_embedding(net: DemoNet) -> None:
    logits = torch.full((1, 1, net.shape.vocab_size), -100.0)
    logits[..., 7] = 100.0
    torch.testing.assert_close(net.soften(logits)[0], net.embed(torch.tensor([7])))


def test_the_config_is_read_as_the_shape(net: DemoNet, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(net.shape)))
    geometry = Geometry.from_checkpoint(tmp_path)
    shape = net.shape
    assert geometry.layers[-1].head_dim == shape.global_head_dim
    assert geometry.layers[0].head_dim == shape.head_dim
    assert geometry.full_rope.partial_rotary_factor == shape.partial_rotary_factor
    assert (geometry.num_experts, geometry.top_k_experts) == (4, shape.top_k_experts)
