from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor
from typer.testing import CliRunner, Result

from dgemma.bench.report import Report, read_report
from dgemma.engine.base import Capacity
from dgemma.engine.kernel_sources import sources_digest
from dgemma.machine import Gpu, Machine
from dgemma.manifest import Manifest, Runtime
from dgemma.weight_store import WeightStore
from dgemma_build.cli import app
from dgemma_build.verify.checks import Subject
from dgemma_build.verify.reference import StreamedReference
from tests.dgemma.model.tiny_weights import random_network
from tests.dgemma_build.verify.engines import GEOMETRY, cpu_engine
from tests.plans import PLAN, write_kernels, write_plan, write_store

SPARK = Gpu("NVIDIA GB10", "GPU-1", 121, "580.95", 2**37, 2**36)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "300"})


def outcome(report: Report, name: str) -> str:
    return next(check.outcome for check in report.checks if check.name == name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("int4"), random_network(GEOMETRY), "int4")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """One that this version of tensorrt-rtx compiled for a GPU that is not here."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    write_plan(
        tmp_path / "plan", GEOMETRY, "int4", runtime=Runtime("tensorrt_rtx", trt.__version__, 121)
    )
    return tmp_path / "plan"


# Engines that run here


def test_a_cpu_engine_is_run_on_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    engine = cpu_engine("int4")
    result = run(engine, "--device", "--json", file, "--runs", 1, "--slots", 3, "--context", 64)
    assert result.exit_code == 0, result.output
    report = read_report(file)
    assert report.passed and report.executed
    assert {check.outcome for check in report.checks} == {"passed"}
    assert len(report.parity) == 9 and all(p.passed for p in report.parity)
    assert {s.rows for s in report.speed} == {1, 2, 3}
    assert {s.context for s in report.speed} == {0, 28, 56}
    assert all(s.pass_ms > 0 and s.floor_ms is None for s in report.speed)
    assert report.memory is not None and report.memory.peak_bytes > 10**7
    for said in ("commit with denoise", "with tail, ms", "as estimated, GB"):
        assert said in result.output


def test_without_device_it_is_compared_but_not_timed(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(cpu_engine("int4"), "--json", file).exit_code == 0
    report = read_report(file)
    assert report.passed and not report.executed
    assert report.parity and not report.speed and report.memory is None


def test_a_report_says_nothing_of_the_machine_but_its_kind(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "report.json"
    broken = Path(shutil.copytree(cpu_engine("int4"), tmp_path / "engine"))
    (broken / "graph.onnx").write_bytes(b"")
    assert run(broken, "--store", store, "--json", file).exit_code == 1
    text = file.read_text()
    assert "ENGINE/graph.onnx: 0 bytes" in text
    for secret in (str(tmp_path), str(store), str(Path.home()), socket.gethostname()):
        assert secret not in text, secret
    assert not any(str(value).startswith("/") for value in _values(json.loads(text)))


def _values(data: object) -> list[object]:
    if isinstance(data, dict | list):
        parts = data.values() if isinstance(data, dict) else data
        return [value for part in parts for value in _values(part)]
    return [data]


def test_an_engine_that_computes_something_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had been built from other weights than it holds."""
    from dgemma_build.verify import run as verification

    right = verification.weights_of

    def wrong(*arguments: object) -> object:
        parameter = right(*arguments)  # type: ignore[arg-type]
        return lambda name: parameter(name) * (1.2 if name.endswith("0.layer_scalar") else 1.0)

    monkeypatch.setattr(verification, "weights_of", wrong)
    result = run(cpu_engine("int4"), "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    report = read_report(tmp_path / "report.json")
    right_kinds = {p.kind for p in report.parity if p.passed}
    assert "prefill" in right_kinds, "layer_scalar serves denoise rows"
    assert outcome(report, "passes") == "failed" and "denoise" in report.checks[-1].detail


def test_hugging_face_agrees_on_a_whole_checkpoint(
    demo_engine: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    chosen = ("--device", "--runs", 1, "--slots", 1, "--context", 512)
    result = run(demo_engine, "--checkpoint", demo_checkpoint, *chosen, "--json", file)
    assert result.exit_code == 0, result.output
    found = read_report(file).hugging_face
    assert found is not None and found.outcome == "passed" and found.prompts == 2
    assert found.same_argmax > 0.99


# Engines that do not


def test_a_plan_is_checked_where_it_cannot_run(plan: Path, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = run(plan, "--store", store, "--json", file)
    assert result.exit_code == 0, result.output
    report = read_report(file)
    outcomes = {check.name: check.outcome for check in report.checks}
    assert outcomes == {
        "manifest": "passed",
        "files": "passed",
        "machine": "skipped",
        "weights": "passed",
        "passes": "skipped",
    }
    assert report.passed and not report.executed


def test_device_without_a_gpu_says_so_and_fails(plan: Path, store: Path) -> None:
    result = run(plan, "--store", store, "--device")
    assert result.exit_code == 1
    assert "not executed: was compiled for a GPU of compute capability 121" in result.stderr
    assert "this machine has no GPU that its driver shows" in result.stderr


def test_kernels_are_checked_where_they_cannot_run(store: Path, tmp_path: Path) -> None:
    file, engine = tmp_path / "report.json", tmp_path / "kernels"
    write_kernels(engine, GEOMETRY, "int4", source="of other kernels")
    result = run(engine, "--store", store, "--json", file)
    assert result.exit_code == 0, result.output
    report = read_report(file)
    outcomes = {check.name: check.outcome for check in report.checks}
    assert outcomes == {
        **dict.fromkeys(("manifest", "files", "weights"), "passed"),
        **dict.fromkeys(("machine", "passes"), "skipped"),
    }
    assert report.engine.graph_sha256 == sources_digest()
    assert report.engine.built_with == "torch 2.13.0+cu130"
    gone = run(engine, "--store", store, "--device")
    assert gone.exit_code == 1 and "not executed: has kernels for GPUs, and this" in gone.stderr


@pytest.mark.parametrize("right", [True, False])
def test_kernels_are_run_on_their_gpu(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """By a stand-in that computes with the torch modules and the store's weights."""

    class TorchEngine(StreamedReference):
        def __init__(self, directory: Path, store: Path, capacity: Capacity, **_: object) -> None:
            def parameter(name: str) -> Tensor:
                return weights.parameter(name) * (1 if right or "down_proj" not in name else 2)

            weights = WeightStore.open(store)
            super().__init__(Manifest.read(directory).geometry, capacity, parameter)

        def meanwhile(self, call: object) -> None:
            raise AssertionError("nothing of the scheduler's runs here")

    module = ModuleType("dgemma.engine.torch_engine")
    module.load = TorchEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    here = Machine(SPARK, 2**36, {"torch": "2.13.0+cu130"}, {})
    monkeypatch.setattr(Machine, "here", lambda: here)
    file, engine = tmp_path / "report.json", tmp_path / "kernels"
    write_kernels(engine, GEOMETRY, "int4")
    chosen = ("--device", "--runs", 1, "--slots", 1, "--context", 64)
    result = run(engine, "--store", store, *chosen, "--json", file)
    report = read_report(file)
    assert (result.exit_code, report.passed, report.executed) == (1 - right, right, True)
    assert report.parity and not any(p.exact for p in report.parity)
    assert report.device.compute_capability == 121
    assert report.memory is not None and report.memory.estimated_bytes > 10**8


def test_a_plan_of_another_version_fails_on_its_own_gpu(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine(SPARK, 2**36, {"tensorrt_rtx": "9.9"}, {})
    monkeypatch.setattr(Machine, "here", lambda: here)
    result = run(plan, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert outcome(read_report(tmp_path / "report.json"), "machine") == "failed"


@pytest.mark.parametrize("name", [PLAN, "build.log"])
def test_a_flipped_bit_of_a_plan(plan: Path, name: str) -> None:
    data = bytearray((plan / name).read_bytes())
    data[0] ^= 1
    (plan / name).write_bytes(data)
    result = run(plan)
    assert result.exit_code == 1 and f"ENGINE/{name}: its content has changed" in result.output


def test_a_store_of_another_precision(plan: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "fp8", random_network(GEOMETRY), "fp8")
    result = run(plan, "--store", other)
    assert result.exit_code == 1
    assert "STORE/store.json: a store of fp8 weights, int4 is asked for" in result.output


def test_a_reason_is_shared_without_the_folders_in_it() -> None:
    subject = Subject(Path("/a/b/engine"), Manifest.read(cpu_engine("int4")), Path("/a/b"), None)
    said = subject.anonymous("/a/b/engine/x.onnx, /a/b/y: no 'f' from (/usr/lib/trt/__init__.py)")
    assert said == "ENGINE/x.onnx, STORE/y: no 'f' from (.../__init__.py)"
    assert subject.anonymous("10 ms/pass and 3/4 of it") == "10 ms/pass and 3/4 of it"


def test_what_is_no_engine_is_one_sentence(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "no engine here" in result.stderr and "Traceback" not in result.stderr
