"""The engine of GPUs on a strict fake of the runtime that computes with the torch modules."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.engine.tensorrt_engine import TensorRTEngine
from dgemma.engine.torch_reference import TorchReference
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.machine import Gpu, Machine
from dgemma.manifest import Manifest, Runtime
from dgemma.model.checkpoint import fill
from dgemma.model.network import Network
from dgemma.weight_store import WeightStore
from tests.dgemma.engine.fake_gpu import FakeTensorRT, HostDevice
from tests.dgemma.engine.fake_tensorrt_runtime import VERSION, plan_bytes
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.quantized import whole_groups
from tests.manifests import renew_hashes
from tests.plans import PLAN, bindings_of, write_plan, write_store

GEOMETRY = whole_groups()
L = GEOMETRY.canvas_length
CAPACITY = Capacity(slots=3, context=300, rows=6)
SPARK = Gpu("NVIDIA GB10", "GPU-1", 121, "580.95", 2**37, 2**36)


def machine(flavour: str = "tensorrt_rtx") -> Machine:
    return Machine(SPARK, 2**36, {flavour: VERSION}, {})


def write_engine(directory: Path, precision: str, flavour: str = "tensorrt_rtx") -> Manifest:
    """A directory whose plan is what the fake runtime takes; fp32 throughout for `fp32`."""
    runtime = Runtime(flavour, VERSION, 121)
    manifest = write_plan(directory, GEOMETRY, precision, runtime=runtime)
    (directory / PLAN).write_bytes(plan_bytes(manifest))
    renew_hashes(directory)
    return manifest


class Bench:
    """An engine, its fake runtime, and the reference with the very weights that are stored."""

    def __init__(self, root: Path, store: Path, precision: str, flavour: str) -> None:
        self.directory, self.store = root / "engine", store
        if not self.directory.exists():
            write_engine(self.directory, precision, flavour)
        self.trt = FakeTensorRT(rtx=flavour == "tensorrt_rtx")
        self.device = HostDevice(self.trt)
        self.cache, self.flavour = root / "cache", flavour

    def open(self, **changes: Any) -> TensorRTEngine:
        given: dict[str, Any] = {
            "machine": machine(self.flavour),
            "device": lambda: self.device,
            "load": {self.flavour: self.trt}.__getitem__,
            "cache": self.cache,
        }
        return TensorRTEngine(self.directory, self.store, CAPACITY, **(given | changes))

    def reference(self) -> TorchReference:
        stored = WeightStore.open(self.store)
        with torch.device("meta"):
            network = Network(stored.manifest.geometry)
        fill(network, stored.parameters(), torch.float32)
        return TorchReference(network, CAPACITY)


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    network, made = random_network(GEOMETRY), {}

    def get(precision: str) -> Path:
        if precision not in made:
            root = tmp_path_factory.mktemp(precision)
            made[precision] = write_store(root, network, precision)
        return made[precision]

    return get


@pytest.fixture
def bench(tmp_path: Path, store_of: Callable[[str], Path]) -> Bench:
    return Bench(tmp_path, store_of("bf16"), "bf16", "tensorrt_rtx")


def random_passes(seed: int, count: int) -> Iterator[list[Row]]:
    """Prefill, commits, denoise steps and fused pairs of all slots, in any mixture."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    held = [0] * CAPACITY.slots
    for _ in range(count):
        rows: list[Row] = []
        for slot in rng.sample(range(CAPACITY.slots), rng.randint(1, CAPACITY.slots)):
            ids = torch.randint(0, GEOMETRY.vocab_size, (2, L), generator=generator)
            soft = torch.randn(L, GEOMETRY.hidden_size, generator=generator)
            valid = rng.choice([1, L - 1, L])
            encode = Row(ids[0], slot, held[slot], valid, denoise=False)
            denoise = Row(ids[1], slot, held[slot], L, True, soft if rng.random() < 0.5 else None)
            pair = denoise._replace(start=encode.end, partner=len(rows))
            what = rng.choice(["encode", "denoise", "pair"])
            held[slot] = held[slot] if what == "denoise" else encode.end
            rows += {"encode": [encode], "denoise": [denoise], "pair": [encode, pair]}[what]
        yield rows


def test_a_copied_prefix_is_the_same_in_another_slot(bench: Bench) -> None:
    engine = bench.open()
    tokens = torch.randint(0, GEOMETRY.vocab_size, (4, L), generator=torch.manual_seed(1))
    for block, ids in enumerate(tokens[:3]):
        engine.forward([Row(ids, 0, block * L, L, denoise=False)])
        engine.restore(1, engine.snapshot(0, block * L, (block + 1) * L))
    there, here = (
        engine.forward([Row(tokens[3], slot, 3 * L, L, denoise=True)]).clone() for slot in (0, 1)
    )
    elsewhere = engine.forward([Row(tokens[3], 2, 3 * L, L, denoise=True)])
    assert torch.equal(here, there) and not torch.equal(here, elsewhere)


def error(ours: Tensor, theirs: Tensor, rows: list[Row]) -> float:
    parts = [(ours[i, : r.valid].float() - theirs[i, : r.valid]) for i, r in enumerate(rows)]
    return max(float(part.abs().max()) for part in parts)


# Passes


@pytest.mark.parametrize("flavour", ["tensorrt_rtx", "tensorrt"])
def test_every_mixture_of_passes_gives_what_the_reference_gives(
    tmp_path: Path, store_of: Callable[[str], Path], flavour: str
) -> None:
    """In fp32, so that every digit counts: pools, buckets, padding, partners, re-runs."""
    bench = Bench(tmp_path, store_of("fp32"), "fp32", flavour)
    engine, reference = bench.open(), bench.reference()
    for rows in random_passes(seed=1, count=40):
        ours, theirs = engine.forward(rows), reference.forward(rows)
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert error(ours, theirs, rows) < 1e-4
    for one, other in zip(engine.pools, reference.pool.arrays, strict=True):
        assert torch.allclose(one, torch.from_numpy(other), atol=1e-4)
    assert engine.reruns > 0, "some of these passes overflow an expert"


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
def test_weights_of_every_precision_are_bound_as_they_are_stored(
    tmp_path: Path, store_of: Callable[[str], Path], precision: str
) -> None:
    bench = Bench(tmp_path, store_of(precision), precision, "tensorrt_rtx")
    engine, reference = bench.open(), bench.reference()
    embedding = engine.embedding()
    assert embedding.dtype == torch.bfloat16
    assert torch.equal(embedding.float(), reference.embedding())
    rows = next(random_passes(seed=2, count=1))
    ours, theirs = engine.forward(rows), reference.forward(rows)
    assert ours.dtype == torch.bfloat16
    assert error(ours, theirs, rows) < 0.05 * float(theirs.abs().max())  # soft is rounded too


def test_a_pass_that_overflows_is_run_again_before_anything_is_kept(bench: Bench) -> None:
    engine, crowd = bench.open(), torch.full((L,), 7)
    rows = [Row(crowd, slot, 0, L, denoise=False) for slot in range(3)]
    before, runs = [pool.clone() for pool in engine.pools], bench.trt.runs
    kept: list[bool] = []
    load = engine._load

    def watch() -> int:
        kept.append(any(not torch.equal(a, b) for a, b in zip(before, engine.pools, strict=True)))
        return load()

    engine._load = watch  # type: ignore[method-assign]
    hidden = engine.forward(rows)
    assert engine.reruns == 1 and bench.trt.runs - runs == 2
    assert kept == [False, False], "nothing is written before the pass is known to be whole"
    assert not hidden.isnan().any() and not any(pool.isnan().any() for pool in engine.pools)
    reference = bench.reference()
    assert error(hidden, reference.forward(rows), rows) < 0.3


def test_the_host_waits_once_in_a_pass(bench: Bench) -> None:
    engine = bench.open()
    for rows in random_passes(seed=3, count=5):
        waits, reruns = bench.device.waits, engine.reruns
        engine.forward(rows)
        assert bench.device.waits - waits - 2 * (engine.reruns - reruns) == 1


def test_the_host_does_other_things_while_the_device_has_a_pass(bench: Bench) -> None:
    engine, seen = bench.open(), list[tuple[int, int]]()
    runs, waits = bench.trt.runs, bench.device.waits
    for _ in range(2):
        engine.meanwhile(lambda: seen.append((bench.trt.runs - runs, bench.device.waits - waits)))
    [rows, more] = random_passes(seed=3, count=2)
    engine.forward(rows)
    assert seen == [(1, 0), (1, 0)]
    engine.forward(more)
    assert len(seen) == 2


def test_a_pass_that_no_engine_may_run(bench: Bench) -> None:
    with pytest.raises(EngineFailure, match="a pass has 1 to 6 rows, got 0"):
        bench.open().forward([])


def test_what_the_runtime_refuses_is_an_engine_failure(bench: Bench) -> None:
    engine = bench.open()
    rows = next(random_passes(seed=4, count=1))
    engine._passes[engine._buckets.of(rows)]._replay = lambda: 1 / 0  # type: ignore[assignment]
    with pytest.raises(EngineFailure, match="the GPU could not run the pass: division by zero"):
        engine.forward(rows)


# Loading


def test_every_shape_is_captured_before_the_first_request_and_none_after(bench: Bench) -> None:
    told: list[tuple[str, int, int]] = []
    engine = bench.open(progress=lambda *what: told.append(what))
    shapes = len(list(engine._buckets.all()))
    assert bench.device.captures == shapes == bench.trt.runs
    assert [done for what, done, _ in told if what == "shapes"] == list(range(1, shapes + 1))
    assert {what for what, _, _ in told} == {"weights", "shapes"}
    for rows in random_passes(seed=5, count=10):
        engine.forward(rows)
    assert bench.device.captures == shapes


def test_passes_share_their_scratch_and_weights_are_there_once(bench: Bench) -> None:
    engine = bench.open()
    scratch = {ready.scratch.data_ptr() for ready in engine._passes.values()}
    assert len(scratch) == 1
    layout = engine._layout
    expected = sum(layout.needs.values()) + len(engine._scratch) + 1
    assert bench.device.allocated == expected


def test_kernels_of_one_start_are_there_at_the_next(bench: Bench) -> None:
    bench.open()
    (file,) = bench.cache.iterdir()
    first = file.read_bytes()
    assert b'"kernels": ["' in first
    bench.open()
    assert file.read_bytes() == first
    file.write_bytes(first.replace(VERSION.encode(), b"1.0"))
    bench.open()
    assert file.read_bytes() == first


def test_memory_that_is_lacking_is_refused_before_weights_are_read(bench: Bench) -> None:
    bench.device.free = 100_000
    with pytest.raises(ConfigurationError, match=rf"{PLAN}: needs .* GB of device memory \(weigh"):
        bench.open()
    assert bench.device.allocated == 0


def test_room_for_snapshots_is_asked_for_too(bench: Bench) -> None:
    bench.device.free = 10**11
    with pytest.raises(ConfigurationError, match=r"prefix cache 1000\.00\)"):
        bench.open(snapshot_bytes=10**12)


def test_memory_for_activations_is_refused_too(bench: Bench) -> None:
    needs = sum(bench.open()._layout.needs.values())
    bench.device.free = bench.device.allocated + needs + 10
    with pytest.raises(ConfigurationError, match=r"device memory \(activations"):
        bench.open()


Change = Callable[[Bench], dict[str, Any]]


def _other_gpu(bench: Bench) -> dict[str, Any]:
    return {"machine": replace(machine(), gpu=replace(SPARK, compute_capability=120))}


def _other_version(bench: Bench) -> dict[str, Any]:
    return {"machine": replace(machine(), runtimes={"tensorrt_rtx": "1.8"})}


def _no_gpu(bench: Bench) -> dict[str, Any]:
    return {"machine": replace(machine(), gpu=None)}


def _cut_plan(bench: Bench) -> dict[str, Any]:
    plan = bench.directory / PLAN
    plan.write_bytes(plan.read_bytes()[:-5])
    renew_hashes(bench.directory)
    return {}


def _flipped_plan(bench: Bench) -> dict[str, Any]:
    plan = bench.directory / PLAN
    plan.write_bytes(plan.read_bytes().replace(b"ids", b"idz"))
    return {}


def _other_bindings(bench: Bench) -> dict[str, Any]:
    other = replace(Manifest.read(bench.directory), bindings=bindings_of(GEOMETRY, "fp32"))
    (bench.directory / PLAN).write_bytes(plan_bytes(other))
    renew_hashes(bench.directory)
    return {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_gpu, "compiled for compute capability 121, NVIDIA GB10 has 120"),
        (_other_version, f"was compiled by tensorrt_rtx {VERSION}, here is 1.8"),
        (_no_gpu, "this machine has no GPU that its driver shows"),
        (_cut_plan, f"{PLAN}: tensorrt_rtx {VERSION} cannot load it: Serialization assertion"),
        (_flipped_plan, f"{PLAN}: its content has changed"),
        (_other_bindings, f"{PLAN}: soft is .* the manifest says"),
    ],
)
def test_a_plan_that_does_not_belong_here_is_refused(
    bench: Bench, change: Change, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        bench.open(**change(bench))
    assert bench.device.allocated == 0


def test_a_store_with_one_bit_flipped_is_refused_at_load(
    tmp_path: Path, store_of: Callable[[str], Path]
) -> None:
    copy = Path(shutil.copytree(store_of("bf16"), tmp_path / "store"))
    shard = copy / "rest.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"rest\.safetensors: its content has changed"):
        Bench(tmp_path, copy, "bf16", "tensorrt_rtx").open()
