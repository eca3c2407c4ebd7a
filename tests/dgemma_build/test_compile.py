from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch

import dgemma_build.flavours
from dgemma.errors import ConfigurationError
from dgemma.precision import policy_of
from dgemma_build.compile import CompilationFailed, CompiledPlan, compile_plan
from dgemma_build.cpu import Bytes, attach_weights
from dgemma_build.envelope import Envelope
from dgemma_build.flavours import FLAVOURS
from dgemma_build.profiles import Profile, profiles
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build import fake_tensorrt
from tests.dgemma_build.graphs import GEOMETRY, graph, quantized_graph
from tests.dgemma_build.quantized import quantize_network

RTX, TENSORRT = FLAVOURS["tensorrt_rtx"], FLAVOURS["tensorrt"]
ENVELOPE = Envelope(slots=4, rows=4, context=256)
HOPPER_AND_BLACKWELL = ["9.0", "10.0", "10.3"]
LARGEST = 20_000_000  # bytes of a plan without weights


def ranges(model: onnx.ModelProto) -> tuple[Profile, ...]:
    return profiles(model.graph, GEOMETRY, ENVELOPE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT as on a machine with a GPU; called with the GPU's compute capability."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)

    def install(capability: str) -> None:
        monkeypatch.setattr(dgemma_build.flavours, "_device_capability", lambda: capability)

    install("9.0")
    return install


def compiled(model: onnx.ModelProto, **options: Any) -> CompiledPlan:
    return compile_plan(model, TENSORRT, "9.0", ranges(model), **options)


# TensorRT, on GPUs that no test machine has


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
@pytest.mark.parametrize("capability", HOPPER_AND_BLACKWELL)
def test_the_documented_builder_is_told_everything(
    gpu: Any, capability: str, precision: str
) -> None:
    gpu(capability)
    model = quantized_graph(precision)
    shapes = profiles(model.graph, GEOMETRY, ENVELOPE, buckets=[1])
    plan = compile_plan(model, TENSORRT, capability, shapes)
    told = json.loads(plan.plan)
    assert told["tf32"] is False and told["verbosity"] == "DETAILED"
    assert told["inputs"] == [value.name for value in model.graph.input]
    assert told["profiles"] == json.loads(json.dumps(shapes))
    assert (plan.flavour, plan.version) == ("tensorrt", fake_tensorrt.__version__)
    assert (plan.compute_capability, plan.profiles) == (capability, shapes)


def test_another_gpu_than_this_machines_is_refused(gpu: Any) -> None:
    gpu("10.0")
    with pytest.raises(ConfigurationError, match=r"10\.0, not for 9\.0"):
        compiled(graph(torch.bfloat16))


def test_bindings_are_the_graphs_inputs_and_outputs(gpu: Any) -> None:
    model = quantized_graph("fp8")
    bindings = {binding.name: binding for binding in compiled(model).bindings}
    assert [n for n, b in bindings.items() if b.is_input] == [v.name for v in model.graph.input]
    assert [n for n, b in bindings.items() if not b.is_input] == [
        v.name for v in model.graph.output
    ]
    assert (bindings["ids"].dtype, bindings["ids"].shape) == ("I64", (-1, 8))
    weight = bindings["layers.0.experts.down_proj"]
    assert (weight.dtype, weight.shape) == ("F8_E4M3", (4, 64, 64))
    scale = bindings["layers.0.experts.down_proj.row_scale"]
    assert (scale.dtype, scale.shape) == ("F32", (4, 64, 1))


def test_the_log_is_kept_without_its_verbose_lines(gpu: Any) -> None:
    plan = compiled(graph(torch.bfloat16))
    assert plan.log == "info: Total Activation Memory: 4096 bytes\n"
    assert plan.activation_bytes == 4096


def test_the_graph_is_left_as_it_was(gpu: Any) -> None:
    model = graph(torch.bfloat16)
    compiled(model)
    assert model == graph(torch.bfloat16)


def test_progress_rises_to_its_total(gpu: Any) -> None:
    heard: list[tuple[str, int, int]] = []
    compiled(graph(torch.bfloat16), progress=lambda *now: heard.append(now))
    parts = [done for _, done, _ in heard]
    assert parts == sorted(set(parts)) and len(parts) > 4
    assert parts[0] == 0 and heard[-1] == ("compile", parts[-1], parts[-1])


class Interrupted(BaseException):
    """As KeyboardInterrupt is, without stopping pytest."""


def test_an_interruption_stops_the_build(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[bool] = []

    def interrupt(what: str, done: int, total: int) -> None:
        if done:
            raise Interrupted

    go_on = fake_tensorrt._go_on

    def watched(monitor: Any) -> bool:
        steps.append(go_on(monitor))
        return steps[-1]

    monkeypatch.setattr(fake_tensorrt, "_go_on", watched)
    with pytest.raises(Interrupted):
        compiled(graph(torch.bfloat16), progress=interrupt)
    assert steps == [False]


def test_a_rejected_graph_is_an_error_with_its_nodes(gpu: Any) -> None:
    model = graph(torch.bfloat16)
    model.graph.node[3].domain, model.graph.node[3].name = "com.example", "strange"
    operator = model.graph.node[3].op_type
    with pytest.raises(
        CompilationFailed, match=rf"not accepted: strange \({operator}\): Plugin not found$"
    ):
        compiled(model)


def test_a_failed_build_is_an_error_with_the_log(gpu: Any) -> None:
    model = graph(torch.bfloat16)
    (shapes,) = ranges(model)
    del shapes["ids"]
    with pytest.raises(CompilationFailed, match=r"no plan: .*no shapes for .*'ids'") as caught:
        compile_plan(model, TENSORRT, "9.0", [shapes])
    assert "error: profile 0: no shapes for dynamic inputs ['ids']\n" in caught.value.log


# TensorRT for RTX, which compiles on any machine


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        *((capability, p) for capability in ("8.9", "12.0", "12.1") for p in ("fp8", "int4")),
        ("12.1", "nvfp4"),
        ("12.1", "bf16"),
    ],
)
def test_the_complete_graph_compiles_ahead_of_time(
    rtx: ModuleType, capability: str, precision: str
) -> None:
    model = quantized_graph(precision, "all" if precision != "bf16" else None)
    parts: list[int] = []
    plan = compile_plan(
        model, RTX, capability, ranges(model), lambda _, done, __: parts.append(done)
    )
    assert 100_000 < len(plan.plan) < LARGEST
    assert (plan.flavour, plan.version) == ("tensorrt_rtx", rtx.__version__)
    assert [b.name for b in plan.bindings if b.is_input] == [v.name for v in model.graph.input]
    assert plan.activation_bytes is not None and "error:" not in plan.log
    assert parts == sorted(parts) and len(parts) > 50


def test_a_graph_in_fp32_compiles_too(rtx: ModuleType) -> None:
    model = graph()
    assert len(compile_plan(model, RTX, "12.0", ranges(model)).plan) < LARGEST


def test_rows_in_buckets_are_profiles_of_one_plan(rtx: ModuleType) -> None:
    model = graph(torch.bfloat16)
    shapes = profiles(model.graph, GEOMETRY, ENVELOPE, buckets=[1, 2])
    assert compile_plan(model, RTX, "12.0", shapes).profiles == shapes


def test_four_bit_floats_are_refused_where_the_gpu_has_none(rtx: ModuleType) -> None:
    model = quantized_graph("nvfp4")
    with pytest.raises(CompilationFailed, match=r"no plan: .*sm89.*fp4"):
        compile_plan(model, RTX, "8.9", ranges(model))


def test_weights_can_be_constants_of_the_plan(rtx: ModuleType, tmp_path: Path) -> None:
    network = random_network(GEOMETRY)
    stored = quantize_network(network, policy_of("int4"))
    places, offset = {}, 0
    with (tmp_path / "weights").open("wb") as file:
        for name, tensor in stored.items():
            wide = tensor.dtype == torch.float32
            data = (tensor.bfloat16() if wide else tensor).contiguous().flatten()
            data = data.view(torch.uint8).numpy().tobytes()
            dtype = "BF16" if tensor.dtype.is_floating_point else "U8"
            places[name] = Bytes("weights", offset, len(data), dtype)
            offset += file.write(data)
    model = quantized_graph("int4")
    shapes = ranges(model)
    attach_weights(model, places)
    plan = compile_plan(model, RTX, "12.1", shapes, weights=tmp_path)
    names = {binding.name for binding in plan.bindings if binding.is_input}
    assert names == set(shapes[0])
    # The embedding at least has no cheaper form than its own bytes.
    embedding = (tmp_path / "weights").read_bytes()[: places["embed_tokens.weight"].length]
    assert embedding in plan.plan


def test_a_missing_file_of_constants_is_an_error(rtx: ModuleType, tmp_path: Path) -> None:
    model = graph(torch.bfloat16)
    shapes = ranges(model)
    attach_weights(model, {"norm.weight": Bytes("weights", 0, 128, "BF16")})
    with pytest.raises(CompilationFailed, match=r"not accepted: .*weights"):
        compile_plan(model, RTX, "12.1", shapes, weights=tmp_path)


def test_an_operator_that_is_unknown_is_named_with_its_node(rtx: ModuleType) -> None:
    model = graph(torch.bfloat16)
    (softmax, *_) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type, softmax.name = "Sofftmax", "router"
    with pytest.raises(CompilationFailed, match=r"router \(Sofftmax\)"):
        compile_plan(model, RTX, "12.1", ranges(model))


def test_the_fake_has_nothing_that_the_real_builder_lacks(rtx: ModuleType) -> None:
    """Its names and its methods' parameters, as the binding's docstrings give them."""
    for name, kind in vars(fake_tensorrt).items():
        if name.startswith("_") or getattr(kind, "__module__", "") != fake_tensorrt.__name__:
            continue
        real = getattr(rtx, name)
        members = getattr(kind, "__members__", None)
        ours = members or {n: v for n, v in vars(kind).items() if not n.startswith("_")}
        if name == "NetworkDefinitionCreationFlag":
            ours = {"STRONGLY_TYPED": 0}  # TensorRT's other flags are about plugins
        for member, value in ours.items():
            assert hasattr(real, member), f"{name}.{member}"
            if inspect.isfunction(value):
                signature = (getattr(real, member).__doc__ or "").partition(" -> ")[0]
                theirs = re.findall(r"(\w+): ", signature)
                assert list(inspect.signature(value).parameters) == theirs, f"{name}.{member}"
