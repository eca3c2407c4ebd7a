"""Settings: defaults, precedence, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.settings import Settings, variable_of


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The least that makes settings valid, and nothing of the machine's own."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("NIM_MODEL_PATH", str(tmp_path))
    monkeypatch.setenv("DGEMMA_CHECKPOINT", str(tmp_path))
    return monkeypatch


def test_defaults() -> None:
    settings = Settings.load()
    assert (settings.grpc_port, settings.metrics_port) == (8001, 8002)
    assert (settings.slots, settings.scheduler) == (8, "fair")
    assert settings.threads is None and settings.max_model_len is None


def test_keywords_win_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NIM_TRITON_GRPC_PORT", "9001")
    assert Settings.load().grpc_port == 9001
    assert Settings.load(grpc_port=9002).grpc_port == 9002
    assert Settings.load(grpc_port=None).grpc_port == 9001


def test_an_empty_variable_is_unset(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NIM_MAX_MODEL_LEN", "")
    assert Settings.load().max_model_len is None


def test_log_level_is_not_case_sensitive(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NIM_LOG_LEVEL", "WARNING")
    assert Settings.load().log_level == "warning"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NIM_TRITON_GRPC_PORT", "65536"),
        ("NIM_TRITON_METRICS_PORT", "http"),
        ("NIM_MAX_MODEL_LEN", "1"),
        ("NIM_MODEL_PATH", "/no/such/directory"),
        ("DGEMMA_CHECKPOINT", "/no/such/directory"),
        ("DGEMMA_SLOTS", "0"),
        ("DGEMMA_SLOTS", "many"),
        ("DGEMMA_SCHEDULER", "lottery"),
        ("DGEMMA_PREFILL_ROWS", "0"),
        ("DGEMMA_PREFIX_CACHE_MIB", "-1"),
        ("DGEMMA_MAX_QUEUED", "-1"),
        ("DGEMMA_THREADS", "-1"),
        ("DGEMMA_DRAIN_TIMEOUT_S", "-1"),
        ("DGEMMA_START_TIMEOUT_S", "9"),
        ("NIM_LOG_LEVEL", "loud"),
        ("DGEMMA_TENANTS", "/no/such/file"),
    ],
)
def test_a_bad_value_is_refused_by_variable_and_value(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    environment.setenv(variable, value)
    with pytest.raises(ConfigurationError) as refused:
        Settings.load()
    message = str(refused.value)
    assert message.startswith(f"{variable}: got {value!r}")
    assert "expected: " in message


def test_a_missing_directory_variable_says_what_to_set(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DGEMMA_CHECKPOINT")
    with pytest.raises(ConfigurationError, match=r"^DGEMMA_CHECKPOINT: not set.*the checkpoint"):
        Settings.load()


def test_tls_needs_a_certificate_and_its_key(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Settings.load().ssl_mode == "disabled"
    environment.setenv("NIM_SSL_MODE", "TLS")
    file = tmp_path / "server.pem"
    file.touch()
    for variable in ("NIM_SSL_CERTS_PATH", "NIM_SSL_KEY_PATH"):
        with pytest.raises(ConfigurationError, match=f"^{variable}: not set; NIM_SSL_MODE=tls"):
            Settings.load()
        environment.setenv(variable, str(file))
    assert Settings.load().ssl_key == file


def test_the_models_are_at_one_of_two_places(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("NIM_CACHE_PATH", str(tmp_path / "cache"))
    assert Settings.load().models == tmp_path
    environment.delenv("NIM_MODEL_PATH")
    with pytest.raises(ConfigurationError) as refused:
        Settings.load()
    assert str(refused.value).startswith("NIM_MODEL_PATH: not set; set it to the engine directory")
    assert f"no model store at {tmp_path}/cache either, where NIM_CACHE_PATH" in str(refused.value)
    (tmp_path / "cache").mkdir()
    assert Settings.load().models == tmp_path / "cache"


def test_a_simulation_needs_no_models(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("NIM_MODEL_PATH")
    environment.setenv("NIM_CACHE_PATH", str(tmp_path / "none"))
    environment.setenv("DGEMMA_SIMULATE", "h100-fp8")
    assert Settings.load().simulate == "h100-fp8"


def test_environment_gives_another_process_the_same_settings(
    environment: pytest.MonkeyPatch,
) -> None:
    settings = Settings.load(slots=3, log_level="debug")
    for variable, value in settings.environment().items():
        environment.setenv(variable, value)
    assert Settings.load() == settings


def test_the_link_to_a_tenants_file_is_kept_so_that_it_can_be_swapped(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "1.yaml").write_text("")
    (tmp_path / "tenants.yaml").symlink_to("1.yaml")
    environment.chdir(tmp_path)
    environment.setenv("DGEMMA_TENANTS", "tenants.yaml")
    environment.setenv("DGEMMA_LEDGER", "ledger")
    settings = Settings.load()
    assert settings.tenants == tmp_path / "tenants.yaml"
    assert settings.ledger == tmp_path / "ledger"
