from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import to_arrays
from dgemma.engine.graph import pool_names
from dgemma.engine.kv_pool import KVPool
from dgemma.errors import ConfigurationError
from dgemma.model.attention import RowIndex
from dgemma.model.checkpoint import parameter_shapes
from dgemma.model.network import Network
from dgemma.precision import PRECISIONS, Policy, policy_of
from dgemma_build.precision_pass import apply_precision
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.graphs import GEOMETRY, graph
from tests.dgemma_build.quantized import (
    TokenRounding,
    attach,
    quantize_network,
)

SHAPES = parameter_shapes(GEOMETRY)
L = GEOMETRY.canvas_length
CAPACITY = Capacity(slots=3, context=40, rows=4)
ELEMENTS = {
    "U8": {"int4": TensorProto.INT4, "nvfp4": TensorProto.FLOAT4E2M1},
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
    "F32": TensorProto.FLOAT,
    "BF16": TensorProto.BFLOAT16,
}
QUANTISED = [(p, name) for p in ("fp8", "int4", "nvfp4") for name in PRECISIONS[p]]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


def declared(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in model.graph.input
    }


# What becomes of the graph


@pytest.mark.parametrize(("precision", "name"), QUANTISED)
def test_inputs_are_those_of_a_store_of_the_policy(
    dtype: torch.dtype, precision: str, name: str
) -> None:
    policy, model = policy_of(precision, name), graph(dtype)
    apply_precision(model, policy)
    onnx.checker.check_model(model)
    before, after = declared(graph(dtype)), declared(model)
    quantised = {p for p in before if policy.format_of(p).is_quantized}
    specs = policy.tensors({p: SHAPES[p] for p in quantised})
    assert list(after) == [
        n for p in before for n in (policy.tensors({p: SHAPES[p]}) if p in quantised else [p])
    ]
    for tensor, spec in specs.items():
        element, shape = after[tensor]
        if spec.dtype == "U8":
            assert element == ELEMENTS["U8"][precision]
            assert shape == (*spec.shape[:-1], 2 * spec.shape[-1])
        else:
            assert (element, shape) == (ELEMENTS[spec.dtype], spec.shape)
    for other in set(before) - quantised:
        assert after[other] == before[other]


@pytest.mark.parametrize(("precision", "name"), QUANTISED)
def test_what_was_replaced_is_every_weight_that_the_policy_names(
    dtype: torch.dtype, precision: str, name: str
) -> None:
    policy, model = policy_of(precision, name), graph(dtype)
    replaced = apply_precision(model, policy)
    assert replaced == {p: precision for p in SHAPES if policy.format_of(p).is_quantized}
    assert len(replaced) == {"experts": 4, "feed_forward": 4 + 6, "all": 4 + 6 + 7}[name]


def test_activations_that_several_products_share_are_rounded_once(
    dtype: torch.dtype,
) -> None:
    model = graph(dtype)
    apply_precision(model, policy_of("fp8"))
    count = Counter(node.op_type for node in model.graph.node)
    # Per layer: attention's input and output, the MLP's and the bank's inputs and inner values.
    assert count["QuantizeLinear"] == 6 * len(GEOMETRY.layers)
    assert count["DequantizeLinear"] == 6 * len(GEOMETRY.layers) + 17


def test_a_precision_without_quantised_weights_changes_nothing(dtype: torch.dtype) -> None:
    model = graph(dtype)
    assert apply_precision(model, policy_of("bf16")) == {}
    assert model == graph(dtype)


# What is refused


def test_a_weight_that_is_used_in_another_way_is_refused() -> None:
    model = graph()
    for pattern, used in (
        ("layers.1.router.proj.weight", "Gemm"),
        ("embed_tokens.weight", "Gather"),
    ):
        with pytest.raises(ConfigurationError, match=rf"{pattern}.*goes to {used}"):
            apply_precision(model, Policy(((pattern, "int4"),), "bf16"))
        assert model == graph()


def test_a_second_use_of_a_weight_is_refused() -> None:
    model = graph()
    name = "layers.0.mlp.down_proj.weight"
    model.graph.node.append(onnx.helper.make_node("Identity", [name], ["second"]))
    with pytest.raises(ConfigurationError, match=rf"{name}.*Transpose, Identity"):
        apply_precision(model, policy_of("fp8"))


def test_a_weight_on_the_left_or_transposed_in_another_way_is_refused() -> None:
    name = "layers.1.experts.down_proj"
    for damage in ("left", "perm"):
        model = graph()
        (transpose,) = (node for node in model.graph.node if name in node.input)
        if damage == "perm":
            transpose.attribute[0].ints[:] = [1, 0, 2]
        else:
            (product,) = (n for n in model.graph.node if transpose.output[0] in n.input)
            product.input[:] = reversed(product.input)
        with pytest.raises(ConfigurationError, match=rf"{name}.*needs x @ W.T"):
            apply_precision(model, policy_of("nvfp4"))


def test_a_rule_that_matches_nothing_is_refused() -> None:
    policy = Policy((("layers.*.moe.*", "fp8"),), "bf16")
    with pytest.raises(ConfigurationError, match=r"'layers\.\*\.moe\.\*' matches no weight"):
        apply_precision(graph(), policy)


# What it computes


def rows_of_every_mode(generator: torch.Generator) -> list[Row]:
    """A commit and the denoise row behind it, a step of a canvas, and a prompt's first chunk."""
    ids = torch.randint(GEOMETRY.vocab_size, (4, L), generator=generator)
    soft = torch.randn(L, GEOMETRY.hidden_size, generator=generator)
    return [
        Row(ids[0], 2, 13, 5, False),
        Row(ids[1], 2, 18, L, True, None, 0),
        Row(ids[2], 0, 21, L, True, soft),
        Row(ids[3], 1, 0, L, False),
    ]


def a_pass(seed: int) -> dict[str, np.ndarray]:
    """Every input of the graph but the weights."""
    generator = torch.Generator().manual_seed(seed)
    pool = KVPool(GEOMETRY, CAPACITY.slots, CAPACITY.context)
    for array in pool.arrays:
        array[:] = torch.randn(array.shape, generator=generator).numpy()
    rows = rows_of_every_mode(generator)
    pools = dict(zip(pool_names(GEOMETRY), pool.arrays, strict=True))
    return {**to_arrays(rows, GEOMETRY, CAPACITY), "room": np.arange(len(rows) * L), **pools}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    return {n: torch.from_numpy(a) for n, a in zip(names, session.run(None, feeds), strict=True)}


def both(
    model: onnx.ModelProto, network: Network, rounded: list[str], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Hidden states, then fresh K and V of each layer: the graph's and the network's.

    What is multiplied by the weights `rounded` is rounded to fp8 in the network too.
    """
    wanted = [value.name for value in model.graph.output if value.name != "load"]
    products = {f"{weight}/product": weight for weight in rounded}
    activations = {
        products[node.output[0]]: node.input[0]
        for node in model.graph.node
        if node.output[0] in products
    }
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for name in sorted(set(activations.values())):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    feeds = a_pass(seed)
    got = run(model, feeds)

    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    pools = [inputs.pop(name) for name in pool_names(GEOMETRY)]
    ids, soft, room = (inputs.pop(name) for name in ("ids", "soft", "room"))
    weights = dict(network.named_parameters())
    theirs = {weights[weight].data_ptr(): got[x] for weight, x in activations.items()}
    with torch.no_grad(), TokenRounding(theirs):
        hidden, _, fresh = network(ids, soft, RowIndex(**inputs), room, pools)
    return list(zip([got[name] for name in wanted], [hidden, *fresh], strict=True))


def largest_difference(pairs: list[tuple[Tensor, Tensor]]) -> float:
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def quantized(
    precision: str, name: str | None, network: Network
) -> tuple[onnx.ModelProto, list[str]]:
    """The graph with the weights of `network`, which becomes what they stand for.

    With them the weights whose activations are rounded.
    """
    policy, model = policy_of(precision, name), graph()
    replaced = apply_precision(model, policy)
    attach(model, quantize_network(network, policy))
    return model, list(replaced) if precision == "fp8" else []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("precision", "name"), [case for case in QUANTISED if case[0] != "nvfp4"])
def test_the_quantised_graph_computes_what_the_dequantised_network_does(
    precision: str, name: str, seed: int
) -> None:
    network = random_network(GEOMETRY, seed)
    model, rounded = quantized(precision, name, network)
    assert largest_difference(both(model, network, rounded, seed)) < 1e-4
    # The tolerance means something: what quantising itself changes is far larger.
    exact = both(model, random_network(GEOMETRY, seed), [], seed)
    assert largest_difference(exact) > 2e-2


def test_an_activation_is_rounded_to_the_bit_as_torch_rounds_it() -> None:
    """Of the same activations, torch's fp8 and scales are the graph's own."""
    model, _ = quantized("fp8", None, random_network(GEOMETRY))
    rounded = [node.input[0] for node in model.graph.node if node.op_type == "Abs"]
    assert len(rounded) == 6 * len(GEOMETRY.layers)
    for name in (each for x in rounded for each in (x, f"{x}/scales", f"{x}/value")):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    got = run(model, a_pass(seed=0))
    for x in rounded:
        scales = got[x].abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
        assert torch.equal(got[f"{x}/scales"], scales)
        assert torch.equal(got[f"{x}/value"], (got[x] / scales).to(torch.float8_e4m3fn).float())


def test_a_token_of_zeros_stays_zero() -> None:
    """Such a token has no largest value to be scaled by."""
    network = random_network(GEOMETRY)
    network.embed_tokens.weight.data.zero_()
    model, _ = quantized("fp8", None, network)
    assert all(output.isfinite().all() for output in run(model, a_pass(seed=0)).values())
