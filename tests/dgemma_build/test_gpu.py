"""Plans that tensorrt-rtx compiles for GPUs which are not here, as engine directories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dgemma_build.gpu
from dgemma.engine.graph import ENTERING, LEAVING, ROW_INPUTS, pool_names
from dgemma.errors import ConfigurationError
from dgemma.manifest import FILE_NAME, Manifest
from dgemma.precision import BLOCK_SCALE, ROW_SCALE, policy_of
from dgemma.sealed import sha256
from dgemma.store_manifest import StoreManifest
from dgemma_build.compile import CompilationFailed
from dgemma_build.engine import (
    Built,
    build_constant_plan,
    build_engine,
    build_from_store,
    build_plan,
)
from dgemma_build.gpu import BEFORE, LOG, PLAN
from dgemma_build.parts import Parts
from dgemma_build.quantize.run import quantize_checkpoint
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights
from tests.dgemma_build.graphs import GEOMETRY
from tests.plans import LIMITS, RUNTIME, bindings_of, in_two
from tests.shared import emitted, graphs

NETWORK = random_network(GEOMETRY)
TWICE = replace(GEOMETRY, layers=2 * GEOMETRY.layers)
ONE_GATE = "layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all plans here, beside which their graph is found emitted."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    emitted(GEOMETRY, torch.bfloat16)
    plans = tmp_path_factory.mktemp("plans")
    (plans / "graphs").symlink_to(graphs())
    return plans


def build(directory: Path, precision: str, target: str = "sm121", rows: int = 4) -> Built:
    out = directory / f"{target}-{precision}"
    return build_plan(GEOMETRY, target, precision, out, max_rows=rows, max_context=128)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
def test_a_plan_is_a_directory_with_a_log_and_a_manifest(directory: Path, precision: str) -> None:
    built = build(directory, precision)
    out = directory / f"sm121-{precision}"
    assert {path.name for path in out.iterdir()} == {PLAN, LOG, FILE_NAME}
    manifest = Manifest.read(out)
    assert manifest == built.manifest
    manifest.verify(out)
    assert (manifest.target, manifest.precision) == ("sm121", precision)
    assert manifest.runtime.flavour == "tensorrt_rtx"
    assert manifest.runtime.compute_capability == 121
    assert manifest.runtime.version.startswith("1.")
    assert manifest.weights == ()
    # What tests of loading take for a plan's is what the compiler says.
    known = {binding.name: binding for binding in bindings_of(GEOMETRY, precision)}
    assert {binding.name: binding for binding in manifest.bindings} == known
    assert manifest.profiles[0].keys() == LIMITS.keys()
    limits = {size: manifest.profiles[0][size] for size in ("rows", "slots", "context", "capacity")}
    assert limits == {"rows": (1, 4), "slots": (1, 2), "context": (1, 128), "capacity": (1, 32)}
    assert (out / LOG).read_text().strip()


def test_layers_that_repeat_are_compiled_once(directory: Path) -> None:
    out, heard = directory / "repeated", list[int]()

    def progress(what: str, done: int, total: int) -> None:
        if what == "compile":
            heard.append(done)
            assert done <= total

    build_plan(TWICE, "sm121", "int4", out, progress, max_rows=4, max_context=128)
    assert {path.name for path in out.iterdir()} == {BEFORE, PLAN, LOG, FILE_NAME}
    manifest = Manifest.read(out)
    manifest.verify(out)
    assert {link.file: link.first_layers for link in manifest.chain} == {BEFORE: (0,), PLAN: (0, 2)}
    plans = in_two(GEOMETRY, "int4")
    assert {link.file: set(link.names) for link in manifest.chain} == {
        file: {binding.name for binding in own} for file, own in plans.items()
    }
    found = {binding.name: binding for binding in manifest.bindings}
    network = {binding.name: binding for binding in bindings_of(TWICE, "int4")}
    between = {ENTERING: plans[PLAN][0], LEAVING: plans[PLAN][-1]}
    assert found == network | between
    assert manifest.profiles[0].keys() == LIMITS.keys()
    assert heard == sorted(heard)
    log = (out / LOG).read_text()
    assert f"info: {BEFORE}\n" in log and f"info: {PLAN}\n" in log


def test_weights_and_their_scales_are_bindings_as_a_store_lays_them_out(directory: Path) -> None:
    for precision, names in {
        "fp8": {ONE_GATE: "F8_E4M3", ONE_GATE + ROW_SCALE: "F32"},
        "int4": {ONE_GATE: "I4", ONE_GATE + BLOCK_SCALE: "BF16"},
    }.items():
        manifest = build(directory, precision).manifest
        inputs = {b.name: b for b in manifest.bindings if b.is_input}
        assert names == {name: inputs[name].dtype for name in names}
        assert inputs["embed_tokens.weight"].dtype == "BF16"
        assert inputs["ids"].shape == (-1, GEOMETRY.canvas_length)
        wanted = policy_of(precision).tensors({ONE_GATE: inputs[ONE_GATE].shape})
        assert wanted.keys() <= inputs.keys()


def test_a_second_build_does_nothing_and_another_envelope_builds_anew(directory: Path) -> None:
    build(directory, "bf16")
    plan = directory / "sm121-bf16" / PLAN
    before = sha256(plan), plan.stat().st_mtime_ns
    assert build(directory, "bf16").up_to_date
    assert (sha256(plan), plan.stat().st_mtime_ns) == before
    assert not build(directory, "bf16", rows=6).up_to_date


def test_a_compiler_that_gives_up_leaves_its_log_and_no_engine(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: object) -> None:
        raise CompilationFailed("the graph is not accepted: node_1 (Cast): no", "all it said")

    monkeypatch.setattr(dgemma_build.gpu, "compile_apart", give_up)
    with pytest.raises(ConfigurationError, match=r"node_1 \(Cast\): no; .* is in .*\.log") as error:
        build(directory, "bf16", target="sm120")
    assert not (directory / "sm120-bf16").exists()
    log = Path(str(error.value).rpartition(" is in ")[2])
    assert log.read_text() == "all it said"


def test_an_added_target_is_compiled_for(directory: Path, tmp_path: Path) -> None:
    """A GPU that no shipped file names: one file, no code."""
    (tmp_path / "sm86.toml").write_text(
        'flavour = "tensorrt_rtx"\ncompute_capability = "8.6"\nprecisions = ["bf16"]\n'
        "max_rows = 4\nmax_context = 128\n"
        '[[gpus]]\nname = "RTX 3090"\nmemory_bytes = 25_769_803_776\n'
    )
    out = directory / "sm86"
    build_plan(GEOMETRY, "sm86", "bf16", out, targets=tmp_path)
    assert Manifest.read(out).runtime.compute_capability == 86


def test_a_store_says_the_geometry_and_the_policy_of_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its weights are read."""

    def compiled(*arguments: object) -> Parts:
        work = arguments[5]
        assert isinstance(work, Path)
        (work / PLAN).write_bytes(b"a plan")
        return Parts(RUNTIME, PLAN, (), ())

    checkpoint = write_weights(tmp_path / "checkpoint", GEOMETRY, hf_tensors(NETWORK))
    quantize_checkpoint(checkpoint, "nvfp4", tmp_path / "store", "all")
    (tmp_path / "store" / "rest.safetensors").unlink()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setattr(dgemma_build.gpu, "from_geometry", compiled)
    made = build_from_store(tmp_path / "store", "sm121", None, tmp_path / "engine").manifest
    assert (made.geometry, made.precision) == (GEOMETRY, "nvfp4")
    assert made.policy == policy_of("nvfp4", "all") != policy_of("nvfp4")


@pytest.mark.parametrize("source", ["checkpoint", "store"])
def test_weights_can_be_constants_of_the_plan(directory: Path, tmp_path: Path, source: str) -> None:
    checkpoint = write_weights(tmp_path / "checkpoint", GEOMETRY, hf_tensors(NETWORK))
    store = None
    if source == "store":
        store = directory / "int4.store"
        quantize_checkpoint(checkpoint, "int4", store)
    out = directory / f"constant-{source}"
    options = {"max_rows": 2, "max_context": 64}
    given = (None, store) if store else (checkpoint, None)
    built = build_constant_plan(*given, "sm121", "int4", out, **options)
    manifest = Manifest.read(out)
    used = StoreManifest.read(store or out.with_name(out.name + ".store"))
    assert manifest.constants == used.content and not manifest.weights
    inputs = {b.name for b in manifest.bindings if b.is_input}
    assert inputs == {*ROW_INPUTS, "room", *pool_names(GEOMETRY)}
    # The embedding at least has no cheaper form than its own bytes.
    embedding = NETWORK.embed_tokens.weight.detach().bfloat16().view(torch.uint8)
    assert embedding.numpy().tobytes() in (out / PLAN).read_bytes()
    assert build_constant_plan(*given, "sm121", "int4", out, **options).up_to_date
    assert built.manifest == manifest
    assert build(directory, "int4").manifest.constants is None


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="an engine for cpu holds its weights"):
        build_plan(GEOMETRY, "cpu", "fp32", tmp_path / "engine")
    with pytest.raises(ConfigurationError, match=r"nvfp4.* is not built for sm89; known: bf16"):
        build_plan(GEOMETRY, "sm89", "nvfp4", tmp_path / "engine")
    with pytest.raises(ConfigurationError, match="does not depend on a checkpoint; build it with"):
        build_engine(tmp_path, "sm121", "fp8", tmp_path / "engine")
    assert not list(tmp_path.iterdir())
