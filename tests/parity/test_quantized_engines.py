"""Engines of quantised weights compute what the torch modules do with the values stored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import Arrays, to_arrays
from dgemma.engine.graph import (
    NUMBER,
    TOKENS,
    arrival_name,
    arrived_name,
    lines_names,
    written_names,
)
from dgemma.engine.kv_pool import FloatArray, KVPool
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.engine.torch_reference import TorchReference
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.manifest import Manifest
from dgemma.model.checkpoint import fill
from dgemma.model.network import Network
from dgemma.precision import policy_of
from dgemma.weight_store import WeightStore
from dgemma_build.cpu import GRAPH, INDEX
from dgemma_build.engine import build_engine, build_from_store
from tests.dgemma_build.quantized import TokenRounding
from tests.oracle.checkpoints import CANVAS, WHOLE_GROUPS, write_tiny_checkpoint
from tests.stitching import attended

CAPACITY = Capacity(slots=3, context=200, rows=6)
TEXT = WHOLE_GROUPS | {"num_experts": 4, "top_k_experts": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("quantized") / "checkpoint", **TEXT)


@pytest.fixture(scope="module", params=["fp8", "int4", "nvfp4"])
def engine(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    emitted_once: None,
) -> Path:
    out = tmp_path_factory.mktemp(str(request.param)) / "engine"
    build_engine(checkpoint, "cpu", request.param, out)
    return out


def store_of(engine: Path) -> WeightStore:
    return WeightStore.open(engine.with_name(engine.name + ".store"), deep=True)


def reference(engine: Path) -> TorchReference:
    store = store_of(engine)
    with torch.device("meta"):
        network = Network(store.manifest.geometry)
    fill(network, store.parameters(), torch.float32)
    return TorchReference(network, CAPACITY)


def passes(hidden_size: int) -> list[list[Row]]:
    """A prompt, a commit and a first denoise as partners, and a second slot beside them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 300, (5, CANVAS), generator=generator)
    soft = torch.randn(CANVAS, hidden_size, generator=generator)
    first = Row(ids[0], 1, 0, CANVAS, False)
    commit = Row(ids[1], 1, CANVAS, CANVAS - 3, False)
    return [
        [first],
        [commit, Row(ids[2], 1, commit.end, CANVAS, True, None, 0), Row(ids[3], 0, 0, 5, False)],
        [Row(ids[4], 1, commit.end, CANVAS, True, soft), Row(ids[2], 0, 5, CANVAS, True, soft)],
    ]


class RoundedActivations:
    """What an fp8 engine's graph makes of the activations of a pass, by the weight's address."""

    def __init__(self, engine: Path, network: Network) -> None:
        self.geometry = network.geometry
        graph = onnx.load(engine / GRAPH, load_external_data=False)
        products = {node.output[0]: node.input[0] for node in graph.graph.node}
        self.weights = {
            parameter.data_ptr(): products[f"{name}/product"]
            for name, parameter in network.named_parameters()
            if f"{name}/product" in products
        }
        self.names = sorted(set(self.weights.values()))
        graph.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, self.names))
        onnx.save(graph, engine / "observed.onnx")
        self.session = onnxruntime.InferenceSession(engine / "observed.onnx")
        self.index = onnxruntime.InferenceSession(engine / INDEX)

    def of(self, rows: list[Row], pool: KVPool) -> tuple[dict[int, Tensor], Tensor]:
        """With them the hidden states."""
        inputs = to_arrays(rows, self.geometry, CAPACITY)
        taken = attended(rows, pool, self.geometry, CAPACITY)
        inputs |= zip(lines_names(self.geometry), map(lines, taken), strict=True)
        inputs[TOKENS] = np.arange(CANVAS)  # one share
        inputs["room"] = np.arange(inputs["ids"].size)  # a place for every token, as the reference
        decided = self.index.run(None, wanted(self.index, inputs))
        inputs |= {v.name: a for v, a in zip(self.index.get_outputs(), decided, strict=True)}
        hidden, *rounded = observed_pass(self.session, inputs, self.geometry, self.names)
        by_name = dict(zip(self.names, map(torch.from_numpy, rounded), strict=True))
        return {at: by_name[name] for at, name in self.weights.items()}, torch.from_numpy(hidden)


def lines(array: FloatArray) -> FloatArray:
    return array.reshape(-1, array.shape[-1])


def wanted(session: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    return {value.name: inputs[value.name] for value in session.get_inputs()}


def observed_pass(
    session: onnxruntime.InferenceSession, inputs: Arrays, geometry: Geometry, names: list[str]
) -> list[np.ndarray[Any, Any]]:
    """Hidden states and the values `names`, of a pass whose only share this is."""
    binding = session.io_binding()
    made = {NUMBER: np.full((), 2**40)}
    names_of_lines = zip(written_names(geometry), lines_names(geometry), strict=True)
    outputs = {name: inputs[taken] for name, taken in names_of_lines}
    for layer in range(len(geometry.layers)):
        made[arrived_name(layer)] = np.zeros(1, np.int64)
        outputs[arrival_name(layer)] = made[arrived_name(layer)][0, ...]
    made = wanted(session, inputs | made)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in made.items()}
    shared = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in outputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in ("hidden", *names):
        binding.bind_output(name)
    for name, value in shared.items():
        binding.bind_ortvalue_output(name, value)
    session.run_with_iobinding(binding)
    return [value.numpy() for value in binding.get_outputs()[: 1 + len(names)]]


def test_hidden_states_are_those_of_the_stored_values(engine: Path) -> None:
    """fp8 rounds activations too, and one within an error of fp32 of halfway may fall either way,
    from where the difference spreads; so its roundings are checked one by one and taken over.
    """
    ours, theirs = OnnxEngine(engine, CAPACITY, threads=1), reference(engine)
    fp8 = Manifest.read(engine).precision == "fp8"
    observed = RoundedActivations(engine, theirs.network) if fp8 else None
    for rows in passes(64):
        roundings = TokenRounding({})
        if observed is not None:
            rounded, hidden = observed.of(rows, ours.pool)
            roundings = TokenRounding(rounded)
        got = ours.forward(rows)
        with roundings:
            wanted = theirs.forward(rows)
        for index, row in enumerate(rows):
            assert (got[index] - wanted[index])[: row.valid].abs().max() < 1e-3
        if observed is not None:
            assert torch.equal(got, hidden)  # what was observed is what the engine does
            assert roundings.differing < 1e-3 * roundings.compared


def test_the_embedding_is_the_stores(engine: Path) -> None:
    stored = store_of(engine).tensor("embed_tokens.weight")
    assert stored.dtype == torch.bfloat16
    embedding = OnnxEngine(engine, CAPACITY, threads=1).embedding()
    assert torch.equal(embedding, stored.float())


def test_the_graph_dequantises_what_onnxruntime_can_read(engine: Path) -> None:
    manifest = Manifest.read(engine)
    graph = onnx.load(engine / GRAPH, load_external_data=False)
    count = sum(node.op_type == "DequantizeLinear" for node in graph.graph.node)
    shapes = store_of(engine).manifest.parameters
    quantized = sum(manifest.policy.format_of(name).is_quantized for name in shapes)
    assert quantized >= 4
    if manifest.precision == "nvfp4":
        assert count == 0 and manifest.weights == ("weights.safetensors",)
    else:
        assert count >= quantized
        assert set(manifest.weights) == set(store_of(engine).manifest.files)
    assert manifest.policy == policy_of(manifest.precision)


def test_an_engine_of_the_store_is_the_engine_of_the_checkpoint(engine: Path) -> None:
    store = engine.with_name(engine.name + ".store")
    assert build_from_store(store, "cpu", None, engine).up_to_date


def test_a_store_of_another_precision_is_refused(engine: Path, tmp_path: Path) -> None:
    store = engine.with_name(engine.name + ".store")
    with pytest.raises(ConfigurationError, match=r"store\.json: a store of .* bf16 is asked for"):
        build_from_store(store, "cpu", "bf16", tmp_path / "engine")
    with pytest.raises(ConfigurationError, match="rows and context are those of a plan"):
        build_from_store(store, "cpu", None, tmp_path / "engine", max_rows=4)
    assert not (tmp_path / "engine").exists()


def test_a_store_with_one_bit_flipped_becomes_no_engine(engine: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(engine.with_name(engine.name + ".store"), tmp_path / "store"))
    shard = store / "layer-01.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ConfigurationError, match=r"layer-01\.safetensors: its content has changed"):
        build_from_store(store, "cpu", None, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
