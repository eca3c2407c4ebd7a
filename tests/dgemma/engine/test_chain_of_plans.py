"""A pass through several plans, one of which is executed for every period of layers.

On the strict fake of the runtime, as the engine's other tests: what differs is here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgemma.engine.base import Row
from dgemma.errors import ConfigurationError
from dgemma.manifest import Manifest, Runtime
from tests.dgemma.engine.fake_tensorrt_runtime import VERSION, plan_bytes
from tests.dgemma.engine.test_tensorrt_engine import GEOMETRY, Bench, L, error, random_passes
from tests.dgemma.model.tiny_weights import random_network
from tests.manifests import renew_hashes
from tests.plans import BEFORE, PLAN, write_chain, write_store

TWICE = replace(GEOMETRY, layers=2 * GEOMETRY.layers)
EXECUTIONS = 3  # what enters the layers, and two periods of them


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp32, so that every digit counts."""
    return write_store(tmp_path_factory.mktemp("fp32"), random_network(TWICE), "fp32")


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def bench(tmp_path: Path, store: Path, request: pytest.FixtureRequest) -> Bench:
    runtime = Runtime(request.param, VERSION, 121)
    manifest = write_chain(tmp_path / "engine", GEOMETRY, "fp32", runtime=runtime)
    write_plans(tmp_path / "engine", manifest)
    return Bench(tmp_path, store, "fp32", request.param)


def write_plans(directory: Path, manifest: Manifest) -> None:
    for link in manifest.links:
        (directory / link.file).write_bytes(plan_bytes(manifest, link))
    renew_hashes(directory)


def test_every_mixture_of_passes_gives_what_the_reference_gives(bench: Bench) -> None:
    engine, reference = bench.open(), bench.reference()
    for rows in random_passes(seed=1, count=20):
        ours, theirs = engine.forward(rows), reference.forward(rows)
        assert error(ours, theirs, rows) < 1e-4
    for one, other in zip(engine.pools, reference.pool.arrays, strict=True):
        assert torch.allclose(one, torch.from_numpy(other), atol=1e-4)
    assert engine.reruns > 0, "some of these passes overflow an expert"


@pytest.mark.parametrize("period", [0, 1])
def test_an_overflow_in_any_period_is_found(bench: Bench, period: int) -> None:
    """Each execution's largest load is read, not only the last one's."""
    engine = bench.open()
    engine.forward([Row(torch.arange(L), 0, 0, L, denoise=False)])
    place = engine._layout.pass_.places["load"]
    loads = engine._pass[place.offset :][: place.nbytes].view(torch.int64).view(place.shape)
    loads[:, 0] = 1
    loads[period, 0] = 1000
    assert engine._load() == 1000


def test_a_shape_is_one_capture_of_all_executions(bench: Bench) -> None:
    engine = bench.open()
    shapes = len(list(engine._buckets.all()))
    assert bench.device.captures == shapes
    assert bench.trt.runs == EXECUTIONS * shapes
    runs, reruns = bench.trt.runs, engine.reruns
    engine.forward([Row(torch.arange(L), 0, 0, L, denoise=False)])
    assert bench.trt.runs - runs == EXECUTIONS * (1 + engine.reruns - reruns)


def test_all_executions_share_their_scratch(bench: Bench) -> None:
    engine = bench.open()
    assert len({ready.scratch.data_ptr() for ready in engine._passes.values()}) == 1
    expected = sum(engine._layout.needs.values()) + len(engine._scratch) + 1
    assert bench.device.allocated == expected


def test_kernels_of_each_plan_are_kept(bench: Bench) -> None:
    bench.open()
    kept = list(bench.cache.iterdir()) if bench.cache.exists() else []
    assert len(kept) == (2 if bench.flavour == "tensorrt_rtx" else 0)


@pytest.mark.parametrize("file", [BEFORE, PLAN])
def test_a_damaged_plan_is_named(bench: Bench, file: str) -> None:
    plan = bench.directory / file
    plan.write_bytes(plan.read_bytes()[:-5])
    with pytest.raises(ConfigurationError, match=rf"{file}: .* bytes, manifest.json says"):
        bench.open()
    renew_hashes(bench.directory)
    with pytest.raises(ConfigurationError, match=rf"{file}: tensorrt.* cannot load it"):
        bench.open()
    assert bench.device.allocated == 0


def test_plans_in_each_others_place_are_refused(bench: Bench) -> None:
    before, plan = ((bench.directory / name) for name in (BEFORE, PLAN))
    one, other = before.read_bytes(), plan.read_bytes()
    before.write_bytes(other)
    plan.write_bytes(one)
    renew_hashes(bench.directory)
    with pytest.raises(ConfigurationError, match=rf"{BEFORE}: plan and manifest differ in"):
        bench.open()


def test_a_chain_that_leaves_out_layers_is_refused(bench: Bench) -> None:
    manifest = Manifest.read(bench.directory)
    first, layers = manifest.chain
    replace(manifest, chain=(first, replace(layers, first_layers=(0,)))).write(bench.directory)
    with pytest.raises(ConfigurationError, match=r"no plan has fresh_k\.2, .*; build it again"):
        bench.open()
    replace(manifest, chain=(first, replace(layers, first_layers=(0, 2, 4)))).write(bench.directory)
    with pytest.raises(ConfigurationError, match=rf"{PLAN}: .*4.* is no binding; build it again"):
        bench.open()
