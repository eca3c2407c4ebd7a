from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.triton_server import installation
from dgemma.triton_server.installation import STUB, Installation
from dgemma.triton_server.python import VERSION


@pytest.fixture
def no_triton_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_triton_on_path: None) -> Path:
    """A site-packages directory with the files of the nvidia-pytriton wheel that matter."""
    site_packages = tmp_path / "site-packages"
    triton = site_packages / "pytriton" / "tritonserver"
    for file in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{VERSION}/{STUB}",
        f"python_backend_stubs/3.8/{STUB}",
    ):
        path = triton / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    origin = site_packages / "pytriton" / "__init__.py"
    spec = ModuleSpec("pytriton", None, origin=str(origin))
    monkeypatch.setattr(importlib.util, "find_spec", {"pytriton": spec}.get)
    monkeypatch.setattr(installation, "libpython_directory", lambda: tmp_path / "libpython")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/already/there")
    return site_packages


def test_a_tritonserver_on_path_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    assert Installation.find(tmp_path) == Installation(binary, None, {})


def test_the_wheel_s_backend_and_the_stub_of_this_python_come_together(
    wheel: Path, tmp_path: Path
) -> None:
    found = Installation.find(tmp_path / "scratch")
    triton = wheel / "pytriton" / "tritonserver"
    assert found.binary == triton / "bin" / "tritonserver"
    assert found.backend_directory == tmp_path / "scratch" / "backends"
    contents = {
        path.name: path.read_text() for path in (found.backend_directory / "python").iterdir()
    }
    assert contents == {
        "libtriton_python.so": "backends/python/libtriton_python.so",
        "triton_python_backend_utils.py": "backends/python/triton_python_backend_utils.py",
        STUB: f"python_backend_stubs/{VERSION}/{STUB}",
    }


def test_this_python_and_its_libraries_come_first_and_nothing_is_lost(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/some/bin:/other/bin")
    environment = Installation.find(tmp_path / "scratch").environment
    assert environment == {
        "PATH": f"{Path(sys.executable).parent}:/some/bin:/other/bin",
        "LD_LIBRARY_PATH": f"{wheel}/nvidia_pytriton.libs:{tmp_path}/libpython:/already/there",
    }


def test_an_empty_search_path_gets_no_entry_for_the_current_directory(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    monkeypatch.setattr(installation, "libpython_directory", lambda: None)
    environment = Installation.find(tmp_path / "scratch").environment
    assert environment["LD_LIBRARY_PATH"] == f"{wheel}/nvidia_pytriton.libs"


def test_no_triton_at_all_is_an_error_that_says_what_to_install(
    no_triton_on_path: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match="pip install --no-deps nvidia-pytriton=="
    ) as caught:
        Installation.find(tmp_path)
    assert sys.prefix in str(caught.value)
    assert "tritonserver container" in str(caught.value)


def test_a_python_without_stub_is_an_error_that_names_those_that_have_one(
    wheel: Path, tmp_path: Path
) -> None:
    stubs = wheel / "pytriton" / "tritonserver" / "python_backend_stubs"
    shutil.rmtree(stubs / VERSION)
    with pytest.raises(ConfigurationError) as caught:
        Installation.find(tmp_path / "scratch")
    message = str(caught.value)
    assert message.startswith(f"Triton has no stub for Python {VERSION}; use one of 3.8")


def test_a_statically_linked_python_refuses_the_wheel(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def static() -> Path:
        raise ConfigurationError("linked statically")

    monkeypatch.setattr(installation, "libpython_directory", static)
    with pytest.raises(ConfigurationError, match="linked statically"):
        Installation.find(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_a_python3_of_another_environment_refuses_the_wheel(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.11"))
    with pytest.raises(ConfigurationError, match="would use another Python's packages"):
        Installation.find(tmp_path / "scratch")


@pytest.mark.parametrize("on_path", [False, True])
def test_numpy_2_is_refused_wherever_triton_comes_from(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool
) -> None:
    if on_path:
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/tritonserver")
    monkeypatch.setattr(importlib.metadata, "version", {"numpy": "2.2.0"}.get)
    with pytest.raises(ConfigurationError, match=r"numpy 2\.2\.0 .*run `pip install 'numpy<2'`"):
        Installation.find(tmp_path / "scratch")


def test_the_triton_of_this_environment_can_be_started(tmp_path: Path) -> None:
    found = Installation.find(tmp_path)
    assert os.access(found.binary, os.X_OK)
