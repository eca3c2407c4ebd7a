from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.front.settings import FrontSettings
from dgemma.settings import Settings
from dgemma.supervisor.configuration import read
from dgemma.supervisor.settings import SupervisorSettings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "service.toml"
    path.write_text('DGEMMA_SLOTS = 2\nDGEMMA_HTTP = false\nNIM_LOG_LEVEL = "debug"\n')
    return path


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    environment = {"DGEMMA_SLOTS": "3", "NIM_LOG_LEVEL": "info", "DGEMMA_THREADS": ""}
    found = read(["NIM_LOG_LEVEL=error", "DGEMMA_HOST=::1"], file, environment)
    assert found.values == {
        "NIM_LOG_LEVEL": "error",
        "DGEMMA_HOST": "::1",
        "DGEMMA_SLOTS": "3",
        "DGEMMA_HTTP": "false",
    }
    assert found.sources == {
        "NIM_LOG_LEVEL": "command line",
        "DGEMMA_HOST": "command line",
        "DGEMMA_SLOTS": "environment",
        "DGEMMA_HTTP": str(file),
    }


def test_two_names_of_one_thing_are_one(file: Path) -> None:
    environment = {"NIM_HTTP_API_PORT": "1", "NIM_SERVER_PORT": "2"}
    assert read([], None, environment).values == {"NIM_HTTP_API_PORT": "1"}
    found = read(["NIM_SERVER_PORT=3"], None, environment)
    assert found.values == {"NIM_HTTP_API_PORT": "3"}
    assert found.sources == {"NIM_HTTP_API_PORT": "command line"}


def test_what_nobody_reads_is_reported_with_what_may_have_been_meant() -> None:
    environment = {"NIM_MAX_MODEL_LENGTH": "1", "DGEMMA_API_KEY": "k", "NIM_ZZZ": "", "HOME": "/"}
    assert read([], None, environment).unknown == (
        "NIM_MAX_MODEL_LENGTH: no such variable; did you mean NIM_MAX_MODEL_LEN?",
        "NIM_ZZZ: no such variable",
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("DGEMMA_SLOTS", "--set: write KEY=VALUE, got 'DGEMMA_SLOTS'"),
        ("=1", "--set: write KEY=VALUE, got '=1'"),
        ("DGEMMA_SLOT=1", "--set: DGEMMA_SLOT: no such variable; did you mean DGEMMA_SLOTS?"),
        ("DGEMMA_PROBE_KEY=1", "--set: DGEMMA_PROBE_KEY: no such variable"),
    ],
)
def test_an_override_that_means_nothing_is_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read([override], None, {})
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("DGEMMA_SLOTS = ", "is not TOML"),
        ("[DGEMMA_SLOTS]\nx = 1", "DGEMMA_SLOTS: got {'x': 1}; expected: a text, a number"),
        ("DGEMMA_SLOT = 1", "DGEMMA_SLOT: no such variable; did you mean DGEMMA_SLOTS?"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_means_nothing_is_refused(file: Path, content: str | None, says: str) -> None:
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        read([], file, {})
    assert says in str(refused.value)
    assert str(file) in str(refused.value)


def test_what_is_printed_is_a_file_of_the_same_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"NIM_MODEL_PATH={tmp_path}", "DGEMMA_HTTP=0", "DGEMMA_QUIET_AFTER_S=2.5"]
    environment = {"DGEMMA_CHECKPOINT": str(tmp_path), "NIM_SERVED_MODEL_NAME": 'a"b'}
    found = read(overrides, None, environment)
    for variable, value in found.values.items():
        monkeypatch.setenv(variable, value)
    loaded = [Settings.load(), SupervisorSettings.load(), FrontSettings.load()]
    lines = list(found.lines(loaded))
    assert "DGEMMA_HTTP = false  # command line" in lines
    assert "DGEMMA_QUIET_AFTER_S = 2.5  # command line" in lines
    assert f'DGEMMA_CHECKPOINT = "{tmp_path}"  # environment' in lines
    assert "DGEMMA_SLOTS = 8  # default" in lines
    assert "# DGEMMA_TENANTS is not set" in lines
    assert not any("DGEMMA_PROBE_KEY" in line for line in lines)
    path = tmp_path / "printed.toml"
    path.write_text("\n".join(lines))
    assert tomllib.loads(path.read_text())["NIM_SERVED_MODEL_NAME"] == 'a"b'
    again = read([], path, {})
    for variable, value in again.values.items():
        monkeypatch.setenv(variable, value)
    assert [Settings.load(), SupervisorSettings.load(), FrontSettings.load()] == loaded


def test_a_service_that_is_killed_before_it_is_unready_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^DGEMMA_STUCK_AFTER_S: got 1: not above"):
        SupervisorSettings.load(stuck_s=1.0)
