"""What an operator sets: ports, directories and limits, from environment variables.

Knows each variable, its default and its range; knows nothing of what a request may set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from dgemma.errors import ConfigurationError
from dgemma.profiles.pointer import current_of
from dgemma.triton_server.tls import Tls


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("no such directory")
    return path.resolve()


def lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("no such file")
    return path.absolute()  # a symbolic link is kept: it may be swapped for another


Directory = Annotated[Path, AfterValidator(_existing)]
File = Annotated[Path, AfterValidator(_file)]


def _names(text: str) -> str:
    if not all(name.strip() for name in text.split(",")):
        raise ValueError("an empty name")
    return text


DEFAULT_CACHE = "/opt/nim/.cache"
_TLS = ("ssl_certs", "ssl_key")
Port = Annotated[int, Field(ge=0, le=65535)]  # 0 = any free port
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)]


class CommonSettings(BaseSettings):
    """What every process of the service is told."""

    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, extra="forbid", frozen=True
    )

    host: str = Field(
        "0.0.0.0",
        validation_alias="DGEMMA_HOST",
        description="the address to listen on, such as 127.0.0.1; 0.0.0.0 is every one",
    )
    drain_timeout_s: int = Field(
        30,
        ge=0,
        le=3600,
        validation_alias="DGEMMA_DRAIN_TIMEOUT_S",
        description="whole seconds that running requests get when the service stops: 0 to 3600",
    )
    log_level: LogLevel = Field(
        "info",
        validation_alias="NIM_LOG_LEVEL",
        description="debug, info, warning or error",
    )
    json_log: bool = Field(
        False,
        validation_alias="NIM_JSONL_LOGGING",
        description="1: every line of the log is JSON, Triton's too; 0: plain text",
    )
    served_model_name: Annotated[str, AfterValidator(_names)] = Field(
        "diffusion_gemma",
        validation_alias="NIM_SERVED_MODEL_NAME",
        description="the names, separated by commas, that requests may call the model by; answers "
        "and NIM's metrics bear the first",
    )

    @property
    def model_names(self) -> list[str]:
        return [name.strip() for name in self.served_model_name.split(",")]

    @classmethod
    def load(cls, **keywords: Any) -> Self:
        """Read the environment; keywords (by field name) that are not None win over it.

        Raises ConfigurationError naming the variable, what it was and what is allowed.
        """
        fields = {variable: name for name in cls.model_fields for variable in cls.variables(name)}
        given = {cls.variables(key)[0]: v for key, v in keywords.items() if v is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            field = fields[str(first["loc"][0])]
            names, allowed = cls.variables(field), cls.model_fields[field].description
            variable = next((name for name in names if os.environ.get(name)), names[0])
            if first["type"] == "missing":
                raise ConfigurationError(f"{variable}: not set; set it to {allowed}") from None
            detail = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(
                f"{variable}: got {str(first['input'])!r}: {detail}; expected: {allowed}"
            ) from None

    @classmethod
    def variables(cls, field: str) -> list[str]:
        """The environment variables of a field, the one that wins first."""
        alias = cls.model_fields[field].validation_alias
        if isinstance(alias, AliasChoices):
            return [str(choice) for choice in alias.choices]
        return [str(alias)]


class Settings(CommonSettings):
    """The service's settings. Use `load`; its errors quote the fields' descriptions."""

    engine: Directory | None = Field(
        None,
        validation_alias="NIM_MODEL_PATH",
        description="the engine directory that `dgemma-build engine --out DIR` wrote, or a model "
        "store to choose one from",
    )
    cache: Path = Field(
        Path(DEFAULT_CACHE),
        validation_alias="NIM_CACHE_PATH",
        description="the model store that is used where NIM_MODEL_PATH is not set",
    )
    profile: str | None = Field(
        None,
        validation_alias="NIM_MODEL_PROFILE",
        description="name or id of one profile of the model store, as `dgemma profiles` lists them",
    )
    preferred: str | None = Field(
        None,
        validation_alias="DGEMMA_PREFERRED_PROFILE",
        description="a precision, or name or id of a profile of the model store, which goes first "
        "where it can be served; NIM_MODEL_PROFILE is never replaced by another",
    )
    checkpoint: Directory = Field(
        validation_alias="DGEMMA_CHECKPOINT",
        description="the checkpoint directory of that engine, with its tokenizer and "
        "configuration, or bring one into the model store with `dgemma download-to-cache`",
    )
    store: Directory | None = Field(
        None,
        validation_alias="DGEMMA_WEIGHT_STORE",
        description="the weight store that `dgemma-build quantize --out STORE` wrote, of an engine "
        "without weights of its own: those of GPUs",
    )
    simulate: str | None = Field(
        None,
        validation_alias="DGEMMA_SIMULATE",
        description="a platform and a precision, such as h100-fp8: no engine is loaded, passes "
        "take the time that they would there, and answers mean nothing",
    )
    grpc_port: Port = Field(
        8001,
        validation_alias="NIM_TRITON_GRPC_PORT",
        description="0 to 65535; 0 takes any free port",
    )
    metrics_port: Port = Field(
        8002,
        validation_alias="NIM_TRITON_METRICS_PORT",
        description="0 to 65535; 0 takes any free port",
    )
    grpc_max_age_s: int = Field(
        0,
        ge=0,
        le=86_400,
        validation_alias="DGEMMA_GRPC_MAX_CONNECTION_AGE_S",
        description="whole seconds after which clients are asked to connect anew, and so meet "
        "other replicas; what runs is finished first: 0, never, to 86400",
    )
    ssl_mode: Annotated[Literal["disabled", "tls", "mtls"], BeforeValidator(lower)] = Field(
        "disabled",
        validation_alias="NIM_SSL_MODE",
        description="disabled; tls: nothing is spoken without TLS; or mtls, which asks clients for "
        "certificates too",
    )
    ssl_certs: File | None = Field(
        None,
        validation_alias="NIM_SSL_CERTS_PATH",
        description="the PEM file of the server's certificate, with those behind it that vouch for "
        "it",
    )
    ssl_key: File | None = Field(
        None,
        validation_alias="NIM_SSL_KEY_PATH",
        description="the PEM file of that certificate's private key, unencrypted",
    )
    ssl_authorities: File | None = Field(
        None,
        validation_alias="NIM_SSL_CA_CERTS_PATH",
        description="the PEM file of the authorities of clients' certificates, for mtls",
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        validation_alias="NIM_MAX_MODEL_LEN",
        description="prompt and answer together: 2 tokens to the checkpoint's own limit",
    )
    slots: int = Field(
        8,
        ge=1,
        le=1024,
        validation_alias="DGEMMA_SLOTS",
        description="requests that run at the same time: 1 to 1024",
    )
    scheduler: Literal["fair", "fcfs"] = Field(
        "fair",
        validation_alias="DGEMMA_SCHEDULER",
        description="fair, between tenants by their weights, or fcfs, first come, first served",
    )
    prefill_rows: int = Field(
        4,
        ge=1,
        le=1024,
        validation_alias="DGEMMA_PREFILL_ROWS",
        description="rows of a pass that may encode prompts beside the canvases: 1 to 1024",
    )
    prefix_cache_mib: int = Field(
        256,
        ge=0,
        le=1_048_576,
        validation_alias="DGEMMA_PREFIX_CACHE_MIB",
        description="MiB of K/V that are kept for prompts that begin alike: 0, none, to 1048576",
    )
    max_queued: int = Field(
        1024,
        ge=0,
        le=1_000_000,
        validation_alias="DGEMMA_MAX_QUEUED",
        description="requests of all tenants that wait for a slot: 0 to 1000000",
    )
    tenants: File | None = Field(
        None,
        validation_alias="DGEMMA_TENANTS",
        description="the file of tenants and their keys; unset lets everybody in as one tenant",
    )
    ledger: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        validation_alias="DGEMMA_LEDGER",
        description="the directory in which the tenants' usage is kept; unset keeps none",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        validation_alias="DGEMMA_THREADS",
        description="CPU threads of a pass: 1 to 1024; unset takes one per core",
    )
    probe_key: SecretStr | None = Field(
        None,
        validation_alias="DGEMMA_PROBE_KEY",
        description="what the supervisor, which draws it, asks with whether the engine runs",
    )
    start_timeout_s: int = Field(
        1800,
        ge=10,
        le=86400,
        validation_alias="DGEMMA_START_TIMEOUT_S",
        description="whole seconds until the service must be ready, the building of an engine at "
        "the first start included: 10 to 86400",
    )

    @classmethod
    def load(cls, **keywords: Any) -> Self:
        """Read the environment; keywords (by field name) that are not None win over it.

        Raises ConfigurationError naming the variable, what it was and what is allowed.
        """
        loaded = super().load(**cls._pointed_at(keywords))
        if loaded.simulate is None and loaded.engine is None and not loaded.cache.is_dir():
            raise ConfigurationError(
                f"NIM_MODEL_PATH: not set; set it to {cls.model_fields['engine'].description}; "
                f"there is no model store at {loaded.cache} either, where NIM_CACHE_PATH points"
            )
        needed = {"disabled": (), "tls": _TLS, "mtls": (*_TLS, "ssl_authorities")}[loaded.ssl_mode]
        for field in needed:
            if getattr(loaded, field) is None:
                raise ConfigurationError(
                    f"{variable_of(field)}: not set; NIM_SSL_MODE={loaded.ssl_mode} needs "
                    f"{cls.model_fields[field].description}"
                )
        return loaded

    @classmethod
    def _pointed_at(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        """Checkpoint and profile are those of the model store, where the operator names none."""

        def given(field: str) -> Any:
            return keywords.get(field) or os.environ.get(variable_of(field))

        if given("checkpoint"):
            return keywords
        current = current_of(Path(given("engine") or given("cache") or DEFAULT_CACHE))
        found: dict[str, Any] = {"checkpoint": current.checkpoint}
        if not given("profile") and not given("simulate"):
            found["profile"] = current.profile
        return keywords | found

    @property
    def tls(self) -> Tls | None:
        """What gRPC is spoken with."""
        if self.ssl_mode == "disabled":
            return None
        assert self.ssl_certs is not None and self.ssl_key is not None, "see load"
        return Tls(
            self.ssl_certs, self.ssl_key, self.ssl_authorities if self.ssl_mode == "mtls" else None
        )

    @property
    def models(self) -> Path:
        """An engine directory or a model store."""
        return self.engine or self.cache.resolve()

    def environment(self) -> dict[str, str]:
        """The variables that give another process these settings."""
        return {
            variable_of(field): str(value)
            for field, value in self.model_dump().items()
            if value is not None
        }


def variable_of(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return Settings.variables(field)[0]
