"""Every token wants the same experts: what a graph of each precision says of it, and computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from dgemma.model.network import Layer, Network
from dgemma.precision import policy_of
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.graphs import GEOMETRY, graph
from tests.dgemma_build.quantized import attach, quantize_network
from tests.dgemma_build.test_precision_pass import a_pass, both, largest_difference, quantized, run

TOKENS = a_pass(0)["ids"].size


def crowded_network() -> Network:
    """One column of the residual stream outweighs what layers add, and routers see no other."""
    network = random_network(GEOMETRY)
    network.embed_tokens.weight.data[:, 0] = 4.0
    for layer in network.layers:
        assert isinstance(layer, Layer)
        layer.router.proj.weight.data.zero_()
        layer.router.proj.weight.data[:, 0] = torch.tensor([1.0, 0.5, -0.5, -1.0])
    return network


def dense(network: Network) -> Network:
    """The same weights; each expert computes every token, and nothing has a capacity."""
    same = Network(GEOMETRY, fused=True).requires_grad_(False)
    same.load_state_dict(network.state_dict())
    return same


def crowded_graph(precision: str) -> tuple[onnx.ModelProto, Network, list[str]]:
    """A graph with a capacity, the network it is held to, and its weights with rounded inputs."""
    network = crowded_network()
    if precision == "nvfp4":  # onnxruntime reads no FP4: the values that are stored stand for it
        quantize_network(network, policy_of(precision, "all"))
        model = graph()
        attach(model, {name: p.data for name, p in network.named_parameters()})
        return model, dense(network), []
    model, rounded = quantized(precision, None, network)
    # What is rounded is compared place by place, so places have to be the same ones.
    return model, network if rounded else dense(network), rounded


@pytest.mark.parametrize("precision", ["fp8", "int4", "nvfp4"])
def test_a_pass_that_overflowed_says_so_and_with_room_gives_the_dense_result(
    precision: str,
) -> None:
    model, network, rounded = crowded_graph(precision)
    feeds = a_pass(seed=0)
    full = run(model, feeds)
    for room in (1, TOKENS // 2, TOKENS - 1):
        crowded = run(model, feeds | {"room": np.arange(room)})
        assert int(crowded["load"]) == TOKENS
        assert (crowded["hidden"] - full["hidden"]).abs().max() > 1e-2  # void, not a bit worse
    assert int(full["load"]) == TOKENS
    assert largest_difference(both(model, network, rounded, seed=0)) < 1e-4
