from __future__ import annotations

import ctypes.util
import sys
import sysconfig
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.triton_server.python import (
    VERSION,
    check_executable,
    check_numpy,
    libpython_directory,
)

LIBPYTHON = f"libpython{VERSION}.so.1.0"


@pytest.mark.parametrize("version", ["1.26.4", "1.22.0"])
def test_numpy_1_is_fine(version: str) -> None:
    check_numpy(version)


@pytest.mark.parametrize("version", ["2.0.0", "2.3.1", "3.0", "10.0.0", "2.0.0rc1"])
def test_numpy_2_is_refused_with_the_reason_and_the_command_that_mends_it(version: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_numpy(version)
    message = str(caught.value)
    assert f"numpy {version} in {sys.prefix}" in message
    assert "corrupts tensors" in message
    assert "pip install 'numpy<2'" in message


def test_the_numpy_of_this_environment_is_fine() -> None:
    check_numpy()


# python3 on PATH


def test_the_python_of_this_environment_is_its_python3() -> None:
    check_executable(Path(sys.executable))


@pytest.fixture
def own_python(tmp_path: Path) -> Path:
    executable = tmp_path / "python3.11"
    executable.write_text("")
    return executable


def test_a_python3_that_leads_to_the_executable_is_fine(own_python: Path) -> None:
    own_python.with_name("python3").symlink_to(own_python)
    check_executable(own_python)


def test_another_python3_beside_the_executable_is_refused(own_python: Path) -> None:
    other = own_python.with_name("python3")
    other.write_text("")
    with pytest.raises(ConfigurationError, match="would use another Python's packages") as caught:
        check_executable(own_python)
    assert str(caught.value).startswith(f"{other} is not {own_python}")
    assert f"`{own_python} -m venv .venv`" in str(caught.value)


def test_a_missing_python3_is_refused(own_python: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"python3 is not .*python3\.11"):
        check_executable(own_python)


# libpython


@pytest.fixture
def prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python in an empty directory, with nothing that the dynamic linker finds."""
    monkeypatch.setattr(sysconfig, "get_config_var", {"LIBDIR": f"{tmp_path}/libdir"}.get)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    return tmp_path


@pytest.mark.parametrize("place", ["libdir", "base/lib"])
def test_libpython_is_found_where_this_python_says_or_below_its_prefix(
    prefixes: Path, place: str
) -> None:
    directory = prefixes / place
    directory.mkdir(parents=True)
    (directory / LIBPYTHON).write_text("")
    assert libpython_directory() == directory


def test_a_libpython_that_the_linker_finds_needs_no_directory(
    prefixes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {f"python{VERSION}": LIBPYTHON}
    monkeypatch.setattr(ctypes.util, "find_library", known.get)
    assert libpython_directory() is None


@pytest.mark.parametrize("libdir", ["libdir", None])
def test_a_statically_linked_python_is_refused_with_what_to_install(
    prefixes: Path, monkeypatch: pytest.MonkeyPatch, libdir: str | None
) -> None:
    if libdir is None:
        monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    (prefixes / "libdir").mkdir()
    (prefixes / "libdir" / f"libpython{VERSION}.a").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        libpython_directory()
    message = str(caught.value)
    assert "is linked statically" in message
    assert LIBPYTHON in message
    assert f"apt-get install libpython{VERSION}" in message
    assert "--enable-shared" in message
