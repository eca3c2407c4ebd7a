from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import dgemma.machine
from dgemma.machine import Gpu, Machine, host_memory, parse_gpu

GIB = 2**30


def test_a_gpu_with_memory_of_its_own() -> None:
    line = "NVIDIA GeForce RTX 5090, GPU-1a2b, 12.0, 580.65.06, 32607, 31000"
    gpu = parse_gpu(line, 64 * GIB, 60 * GIB)
    assert (gpu.name, gpu.uuid, gpu.driver) == ("NVIDIA GeForce RTX 5090", "GPU-1a2b", "580.65.06")
    assert gpu.compute_capability == 120
    assert (gpu.memory_bytes, gpu.free_bytes) == (32607 * 2**20, 31000 * 2**20)


def test_a_gpu_that_shares_the_hosts_memory() -> None:
    gpu = parse_gpu("NVIDIA GB10, GPU-1, 12.1, 580.95.05, [N/A], [N/A]", 119 * GIB, 90 * GIB)
    assert gpu.compute_capability == 121
    assert (gpu.memory_bytes, gpu.free_bytes) == (119 * GIB, 90 * GIB)


def test_free_memory_is_what_can_be_taken_and_not_what_is_unused(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:  2048 kB\nMemFree:  10 kB\nMemAvailable:  1024 kB\nHugePages: 0\n"
    )
    assert host_memory(meminfo) == (2 * 2**20, 2**20)


def test_this_machine_tells_what_imports_and_why_the_rest_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dgemma.machine, "RUNTIMES", ("onnxruntime", "no_such_runtime"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    here = Machine.here()
    assert here.runtimes.keys() == {"onnxruntime"} and here.runtimes["onnxruntime"][0].isdigit()
    assert here.broken == {"no_such_runtime": "No module named 'no_such_runtime'"}
    assert here.gpu is None and here.free_bytes > 0


def runtimes(monkeypatch: pytest.MonkeyPatch, cuda: str | None, gpu: Gpu | None) -> Machine:
    """A machine whose torch was built for `cuda`."""
    torch = SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(dgemma.machine, "RUNTIMES", ("torch",))
    monkeypatch.setattr(dgemma.machine, "_gpu_here", lambda total, free: gpu)
    return Machine.here()


GPU = Gpu("NVIDIA H200", "GPU-1", 90, "580", 2**37, 2**36)


def test_torch_is_a_runtime_where_it_can_run_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(dgemma.machine.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CC", "cc")
    here = runtimes(monkeypatch, "13.0", GPU)
    assert (here.runtimes, here.broken) == ({"torch": "2.13.0"}, {})

    def why(cuda: str | None = "13.0") -> str:
        found = runtimes(monkeypatch, cuda, GPU)
        assert not found.runtimes
        return found.broken["torch"]

    assert why(None) == "torch 2.13.0 was built without CUDA; pip install torch as PyPI has it"
    (tmp_path / "Python.h").unlink()
    assert why() == "triton finds no Python.h; install Python's headers"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why() == "triton finds no C compiler; install gcc, or name one in CC"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in why() and why().endswith("; pip install triton")


def test_torch_is_not_imported_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(dgemma.machine.importlib, "import_module", refuse)
    here = runtimes(monkeypatch, "13.0", None)
    assert here.broken == {"torch": "there is no GPU for its kernels"}


@pytest.mark.parametrize(("visible", "asked"), [(None, "0"), ("2,0", "2"), ("GPU-1", "GPU-1")])
def test_the_gpu_is_the_first_that_cuda_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: str
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f'#!/bin/sh\n[ "$2" = {asked} ] && echo "NVIDIA L40S, GPU-1, 8.9, 570.1, 46068, 45000"\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = Machine.here().gpu
    assert gpu is not None and gpu.compute_capability == 89
