from __future__ import annotations

import subprocess
from typing import Any

import pytest

from dgemma.targets import load_targets
from dgemma_build import buildable
from dgemma_build.buildable import Machine, capabilities, import_error, why_not

TARGETS = load_targets()


def machine(modules: str = "", gpus: str = "") -> Machine:
    installed = modules.split()
    return Machine(
        lambda name: None if name in installed else "no such module",
        lambda: frozenset(gpus.split()),
    )


@pytest.mark.parametrize("name", ["sm80", "sm89", "sm120", "sm121"])
def test_tensorrt_rtx_compiles_for_gpus_that_are_not_there(name: str) -> None:
    assert why_not(TARGETS[name], machine("tensorrt_rtx")) is None
    assert why_not(TARGETS[name], machine("onnxruntime tensorrt", "12.0")) == (
        "tensorrt_rtx does not import (no such module); pip install tensorrt-rtx"
    )


@pytest.mark.parametrize(("name", "own"), [("sm90", "9.0"), ("sm100", "10.0"), ("sm103", "10.3")])
def test_tensorrt_needs_the_gpu_it_compiles_for(name: str, own: str) -> None:
    target = TARGETS[name]
    assert why_not(target, machine("tensorrt", f"8.9 {own}")) is None
    assert why_not(target, machine("tensorrt", "8.0 8.9")) == (
        f"tensorrt needs a GPU of compute capability {own} to compile for one; here: 8.0, 8.9"
    )
    assert (why_not(target, machine("tensorrt")) or "").endswith("here: none")
    absent = why_not(target, machine("tensorrt_rtx onnxruntime", own))
    assert absent is not None and "Triton container" in absent


def test_the_cpu_needs_onnxruntime() -> None:
    assert why_not(TARGETS["cpu"], machine("onnxruntime")) is None
    assert (why_not(TARGETS["cpu"], machine("tensorrt")) or "").startswith("onnxruntime does not")


def test_kernels_need_nothing_that_torch_does_not_bring() -> None:
    assert why_not(TARGETS["gpu"], machine("torch")) is None
    absent = why_not(TARGETS["gpu"], machine("tensorrt", "9.0"))
    assert absent == "torch does not import (no such module); pip install torch"


def test_importing_is_the_proof() -> None:
    assert import_error("json") is None
    assert import_error("a_module_that_nobody_wrote") == (
        "No module named 'a_module_that_nobody_wrote'"
    )


def test_a_module_that_breaks_on_import_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.11: cannot open\nand much more")

    monkeypatch.setattr(buildable.importlib, "import_module", broken)
    assert import_error("broken_on_import") == "libnvinfer.so.11: cannot open"


@pytest.fixture(autouse=True)
def _ask_again() -> None:
    capabilities.cache_clear()


def driver(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == "nvidia-smi"
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, answer)

    monkeypatch.setattr(buildable.subprocess, "run", run)


def test_the_driver_names_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, "9.0\n9.0\n12.1\n")
    assert capabilities() == {"9.0", "12.1"}


@pytest.mark.parametrize(
    "error", [FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")]
)
def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    driver(monkeypatch, error)
    assert capabilities() == frozenset()
