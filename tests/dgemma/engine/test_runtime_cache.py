from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.engine.runtime_cache import RuntimeCache, cache_key, default_directory
from dgemma.machine import Gpu
from dgemma.manifest import Manifest, Runtime
from dgemma.sealed import FileRecord
from tests.dgemma_build.quantized import whole_groups
from tests.plans import PLAN, write_plan

GPU = Gpu("NVIDIA GB10", "GPU-1", 121, "580.95", 2**37, 2**36)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_plan(tmp_path / "engine", whole_groups(), "bf16")


def test_kernels_belong_to_a_plan_a_gpu_a_version_and_a_driver(manifest: Manifest) -> None:
    keys = {
        cache_key(manifest, PLAN, GPU),
        cache_key(manifest, PLAN, replace(GPU, uuid="GPU-2")),
        cache_key(manifest, PLAN, replace(GPU, name="RTX 5090")),
        cache_key(manifest, PLAN, replace(GPU, driver="590.1")),
        cache_key(replace(manifest, runtime=Runtime("tensorrt_rtx", "1.8", 121)), PLAN, GPU),
        cache_key(replace(manifest, files={PLAN: FileRecord(1, "other")}), PLAN, GPU),
    }
    assert len(keys) == 6
    assert cache_key(manifest, PLAN, replace(GPU, free_bytes=0)) == cache_key(manifest, PLAN, GPU)


def test_what_was_written_is_read_and_nothing_else_is_left(
    manifest: Manifest, tmp_path: Path
) -> None:
    cache = RuntimeCache.of(tmp_path / "cache", manifest, PLAN, GPU)
    assert cache.read() == b""
    cache.write(b"kernels")
    cache.write(b"more kernels")
    assert cache.read() == b"more kernels"
    assert list((tmp_path / "cache").iterdir()) == [cache.path]


def test_a_cache_that_cannot_be_written_is_a_warning(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        RuntimeCache.of(tmp_path / "file", manifest, PLAN, GPU).write(b"kernels")
    assert "kernels are not kept for the next start" in caplog.text


def test_the_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/dgemma")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_directory() == Path.home() / ".cache" / "dgemma"
