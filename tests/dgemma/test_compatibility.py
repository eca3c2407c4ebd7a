from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.compatibility import check_engine, why_not
from dgemma.engine.kernels.chip import CAPABILITIES
from dgemma.engine.weight_bindings import weight_inputs
from dgemma.errors import ConfigurationError
from dgemma.machine import Gpu, Machine
from dgemma.manifest import FILE_NAME, Manifest, Runtime
from dgemma.precision import policy_of
from dgemma.store_manifest import StoreManifest
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.quantized import whole_groups
from tests.manifests import edit_manifest
from tests.plans import (
    BEFORE,
    PLAN,
    RUNTIME,
    TORCH,
    write_chain,
    write_kernels,
    write_plan,
    write_store,
)

GEOMETRY = whole_groups()
SPARK = Gpu("NVIDIA GB10", "GPU-1", 121, "580.95", 2**37, 2**36)
HERE = Machine(SPARK, 2**36, {"onnxruntime": "1.32", RUNTIME.flavour: RUNTIME.version}, {})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("int4"), random_network(GEOMETRY), "int4")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_plan(tmp_path / "engine", GEOMETRY, "int4")
    return tmp_path / "engine"


def of(runtime: Runtime, precision: str = "bf16") -> Manifest:
    """What `why_not` looks at."""
    policy = policy_of(precision)
    return Manifest("any", precision, policy, runtime, GEOMETRY, "", "", (), (), {}, {})


def refusal(engine: Path, machine: Machine = HERE, **given: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_engine(engine, machine, **given)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_belongs_together_is_accepted(engine: Path, store: Path) -> None:
    manifest = check_engine(engine, HERE, store=store, geometry=GEOMETRY)
    assert manifest == Manifest.read(engine)


# The machine


def test_a_machine_without_a_gpu(engine: Path) -> None:
    message = refusal(engine, replace(HERE, gpu=None))
    assert str(engine / FILE_NAME) in message
    assert "compiled for a GPU of compute capability 121, and this machine has no GPU" in message
    assert "select an engine for target cpu" in message


def test_a_plan_for_another_gpu(engine: Path) -> None:
    other = replace(HERE, gpu=replace(SPARK, name="RTX 5090", compute_capability=120))
    message = refusal(engine, other)
    assert "compiled for compute capability 121, RTX 5090 has 120" in message
    assert "dgemma-build engine --target sm120" in message


def test_a_plan_of_another_version(engine: Path) -> None:
    message = refusal(engine, replace(HERE, runtimes={RUNTIME.flavour: "1.8.0.1"}))
    assert "compiled by tensorrt_rtx 1.7.1.116, here is 1.8.0.1; build it again" in message


def test_a_runtime_that_is_not_here(engine: Path) -> None:
    without = Machine(SPARK, 2**36, {}, {"tensorrt_rtx": "libcudart.so.13: cannot open"})
    assert "(libcudart.so.13: cannot open); pip install tensorrt-rtx" in refusal(engine, without)
    assert "tensorrt, which does not import (not installed); serve in NVIDIA's" in str(
        why_not(of(Runtime("tensorrt", "11.4", 121)), without)
    )
    assert "runtime 'tvm' is not known" in str(why_not(of(Runtime("tvm", "1")), HERE))


def test_a_cpu_engine_needs_no_gpu_and_no_certain_version() -> None:
    assert why_not(of(Runtime("onnxruntime", "1.0")), replace(HERE, gpu=None)) is None


# Kernels, which any GPU compiles for itself


CUDA = replace(HERE, runtimes={"torch": "2.13.0+cu130"})
A100 = replace(SPARK, name="A100", compute_capability=80)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_run_on_every_gpu_that_they_are_laid_out_for(capability: int) -> None:
    here = replace(CUDA, gpu=replace(SPARK, compute_capability=capability))
    for precision in ("bf16", "int4"):
        assert why_not(of(TORCH, precision), here) is None
    for precision in ("fp8", "nvfp4"):
        assert (why_not(of(TORCH, precision), here) is None) == (capability != 80)


@pytest.mark.parametrize(
    ("precision", "what"), [("fp8", "multiplies in fp8"), ("nvfp4", "scales its weights in fp8")]
)
def test_a_gpu_without_units_for_fp8_says_what_to_select(precision: str, what: str) -> None:
    message = str(why_not(of(TORCH, precision), replace(CUDA, gpu=A100)))
    assert message.startswith(f"{what}, for which A100 of compute capability 80 has no units;")
    assert "select int4 or bf16" in message and "--target gpu --precision int4" in message


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (replace(CUDA, gpu=None), ("no GPU that its driver shows", "engine for target cpu")),
        (
            replace(CUDA, gpu=replace(SPARK, name="T4", compute_capability=75)),
            ("80, 89, 90, 100, 103, 120, 121; T4 has 75", "for target sm75 or cpu"),
        ),
        (
            replace(CUDA, runtimes={}, broken={"torch": "torch 2.13.0+cpu was built without CUDA"}),
            ("needs torch that runs kernels, which it cannot here: torch 2.13.0+cpu was",),
        ),
        (replace(CUDA, runtimes={}), ("cannot here: not installed; pip install torch",)),
    ],
)
def test_a_machine_that_runs_no_kernels_says_what_to_do(
    here: Machine, words: tuple[str, ...]
) -> None:
    message = str(why_not(of(TORCH, "bf16"), here))
    assert all(word in message for word in words), message


def test_kernels_need_all_weights_of_the_network(store: Path, tmp_path: Path) -> None:
    write_kernels(tmp_path / "engine", GEOMETRY, "int4")
    manifest = check_engine(tmp_path / "engine", CUDA, store=store, geometry=GEOMETRY)
    assert (manifest.graph, manifest.links, manifest.files) == ("", (), {})
    held = StoreManifest.read(store)
    some = dict(held.tensors)
    gone = some.pop("layers.1.experts.down_proj")
    assert gone.dtype == "U8"
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    replace(held, tensors=some).write(copy)
    message = refusal(tmp_path / "engine", CUDA, store=copy)
    assert "layers.1.experts.down_proj is not there, the engine of" in message
    write_kernels(tmp_path / "fp8", GEOMETRY, "fp8")
    assert "a store of int4 weights, fp8 is asked for" in refusal(
        tmp_path / "fp8", CUDA, store=store
    )


# The engine


def test_an_engine_of_another_geometry(engine: Path) -> None:
    message = refusal(engine, geometry=replace(GEOMETRY, num_experts=8, vocab_size=41))
    assert f"{engine / FILE_NAME}: was built for another geometry, it differs in" in message
    assert "vocab_size" in message and "num_experts" in message and "build the engine" in message


@pytest.mark.parametrize("name", [PLAN, "build.log", FILE_NAME])
def test_a_flipped_bit_anywhere_in_the_engine(engine: Path, name: str) -> None:
    flip(engine / name)
    message = refusal(engine)
    # Where a bit of the manifest is its grammar, it is no manifest any more.
    unreadable = name == FILE_NAME and f"{engine / name}: cannot be read" in message
    assert unreadable or f"{engine / name}: its content has changed" in message


@pytest.mark.parametrize("name", [BEFORE, PLAN])
def test_a_flipped_bit_in_any_plan_of_a_chain(tmp_path: Path, name: str) -> None:
    write_chain(tmp_path, GEOMETRY, "int4")
    flip(tmp_path / name)
    assert f"{tmp_path / name}: its content has changed" in refusal(tmp_path)


def test_plans_in_a_chain_take_the_weights_of_all_layers(
    engine: Path, store: Path, tmp_path: Path
) -> None:
    manifest = write_chain(tmp_path / "chain", GEOMETRY, "int4")
    deep = replace(GEOMETRY, layers=2 * GEOMETRY.layers)
    there = write_store(tmp_path / "deep", random_network(deep), "int4")
    assert check_engine(tmp_path / "chain", HERE, store=there, geometry=deep) == manifest
    inputs = {b.name for b in weight_inputs(manifest)}
    assert inputs == set(StoreManifest.read(there).tensors)
    assert "differs in layers" in refusal(tmp_path / "chain", store=store)


# The weights


Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("name", ["layer-00.safetensors", "rest.safetensors", "store.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_store_that_is_not_whole(
    engine: Path, store: Path, tmp_path: Path, name: str, damage: Damage
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    damage(copy / name)
    message = refusal(engine, store=copy)
    assert str(copy / name) in message and "dgemma-build quantize" in message


def test_a_store_that_a_plan_with_weights_was_not_built_of(
    engine: Path, store: Path, tmp_path: Path
) -> None:
    """Only the embedding is read of it, which would fit and belong to another network."""
    plan = Path(shutil.copytree(engine, tmp_path / "plan"))
    manifest = Manifest.read(plan)
    # A plan that holds its weights has none of them among its inputs.
    weights = set(StoreManifest.read(store).tensors)
    own = tuple(b for b in manifest.bindings if b.name not in weights)
    replace(manifest, bindings=own, constants=StoreManifest.read(store).content).write(plan)
    check_engine(plan, HERE, store=store)
    replace(manifest, bindings=own, constants="another").write(plan)
    message = refusal(plan, store=store)
    assert f"{store}: not the weights that the plan in {plan} holds itself" in message
    assert "build the plan again" in message


def test_a_shallow_look_reads_no_weights_but_misses_none(
    engine: Path, store: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    flip(copy / "rest.safetensors")
    check_engine(engine, HERE, store=copy, deep=False)
    (copy / "rest.safetensors").unlink()
    assert "rest.safetensors: missing" in refusal(engine, store=copy, deep=False)


def test_a_store_of_another_precision_or_policy(tmp_path: Path, store: Path) -> None:
    write_plan(tmp_path / "fp8", GEOMETRY, "fp8")
    message = refusal(tmp_path / "fp8", store=store)
    assert "store.json: a store of int4 weights, fp8 is asked for" in message
    write_plan(tmp_path / "experts", GEOMETRY, "int4", policy=policy_of("int4", "experts"))
    assert "store.json: other weights are quantised" in refusal(tmp_path / "experts", store=store)


def test_a_store_of_another_geometry(tmp_path: Path, store: Path) -> None:
    write_plan(tmp_path / "engine", replace(GEOMETRY, sliding_window=13), "int4")
    message = refusal(tmp_path / "engine", store=store)
    assert "store.json: of another geometry, it differs in sliding_window" in message


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "dynamic"])
def test_bindings_that_the_store_does_not_hold(engine: Path, store: Path, change: str) -> None:
    gate = "layers.0.mlp.gate_proj.weight"
    bindings = [vars(b) for b in Manifest.read(engine).bindings]
    mine = next(b for b in bindings if b["name"] == gate)
    told = {"name": "x.weight", "dtype": "F4", "shape": [64, 128], "dynamic": [-1, 64]}
    mine["shape" if change == "dynamic" else change] = told[change]
    if change == "dtype":
        mine["dtype"] = "BF16"
    edit_manifest(engine, bindings=bindings)
    message = refusal(engine, store=store)
    expected = {
        "name": "store: x.weight is not there, the plan of",
        "dtype": f"store: {gate} is U8 [64, 32], the plan of",
        "shape": "takes U8 [64, 64]; build both with the same version",
        "dynamic": f"input {gate} is no weight: its shape is [-1, 64]",
    }
    assert expected[change] in message
