"""What an operator sets of the HTTP front, from environment variables.

Knows each variable, its default and its range; knows nothing of the service behind the front.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
)

from dgemma.errors import ConfigurationError
from dgemma.settings import DEFAULT_CACHE, CommonSettings, File, Port, lower
from dgemma.triton_server.tls import Tls

_TLS = ("ssl_key", "ssl_certificate")
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class FrontSettings(CommonSettings):
    """The front's settings. Use `load`; its errors quote the fields' descriptions."""

    triton_url: str = Field(
        "127.0.0.1:8001",
        pattern=r"^[^\s/]+:[0-9]{1,5}$",
        validation_alias="DGEMMA_TRITON_URL",
        description="HOST:PORT of Triton's gRPC endpoint",
    )
    triton_metrics_url: str = Field(
        "http://127.0.0.1:8002/metrics",
        pattern=r"^http://",
        validation_alias="DGEMMA_TRITON_METRICS_URL",
        description="the http:// address of Triton's metrics",
    )
    port: Port = Field(
        8000,
        validation_alias=AliasChoices("NIM_HTTP_API_PORT", "NIM_SERVER_PORT"),
        description="0 to 65535; 0 takes any free port",
    )
    models: Path | None = Field(
        None,
        validation_alias="NIM_MODEL_PATH",
        description="the engine directory or model store that is served, for /v1/manifest",
    )
    cache: Path = Field(
        Path(DEFAULT_CACHE),
        validation_alias="NIM_CACHE_PATH",
        description="the model store where NIM_MODEL_PATH is not set, for /v1/manifest",
    )
    timeout_s: Seconds = Field(
        600.0,
        validation_alias="DGEMMA_HTTP_TIMEOUT_S",
        description="seconds until an answer must be complete: above 0 to 86400",
    )
    max_body_mib: float = Field(
        4.0,
        gt=0,
        le=1024,
        validation_alias="DGEMMA_HTTP_MAX_BODY_MIB",
        description="MiB that the body of a request may have: above 0 to 1024",
    )
    read_timeout_s: Seconds = Field(
        30.0,
        validation_alias="DGEMMA_HTTP_READ_TIMEOUT_S",
        description="seconds until a request's headers, and its body, must have come: above 0 to "
        "86400",
    )
    write_timeout_s: Seconds = Field(
        60.0,
        validation_alias="DGEMMA_HTTP_WRITE_TIMEOUT_S",
        description="seconds that a client may leave unread what was sent to it: above 0 to 86400",
    )
    ready_timeout_s: Seconds = Field(
        1.5,
        validation_alias="DGEMMA_READY_TIMEOUT_S",
        description="seconds that the inference behind /v1/health/ready may take: above 0 to 86400",
    )
    ready_cache_s: float = Field(
        0.5,
        ge=0,
        le=86_400,
        validation_alias="DGEMMA_READY_CACHE_S",
        description="seconds for which what /v1/health/ready found out holds: 0 to 86400",
    )
    probe_api_key: SecretStr | None = Field(
        None,
        validation_alias="DGEMMA_PROBE_API_KEY",
        description="the API key of the inference behind /v1/health/ready, where there are tenants",
    )
    supervised: Path | None = Field(
        None,
        validation_alias="DGEMMA_SUPERVISED",
        description="the directory of the supervisor that has started this process; it sets it",
    )
    ssl_mode: Annotated[Literal["disabled", "tls", "mtls"], BeforeValidator(lower)] = Field(
        "disabled",
        validation_alias="NIM_SSL_MODE",
        description="disabled, tls, or mtls, which asks clients for certificates",
    )
    ssl_key: File | None = Field(
        None,
        validation_alias="NIM_SSL_KEY_PATH",
        description="the PEM file of the server's key, for tls and mtls",
    )
    ssl_certificate: File | None = Field(
        None,
        validation_alias="NIM_SSL_CERTS_PATH",
        description="the PEM file of the server's certificate and those it depends on",
    )
    ssl_authorities: File | None = Field(
        None,
        validation_alias="NIM_SSL_CA_CERTS_PATH",
        description="the PEM file of the authorities of clients' certificates, for mtls",
    )

    @classmethod
    def load(cls, **keywords: Any) -> Self:
        """Read the environment; keywords (by field name) that are not None win over it.

        Raises ConfigurationError naming the variable, what it was and what is allowed.
        """
        loaded = super().load(**keywords)
        needed = {"disabled": (), "tls": _TLS, "mtls": (*_TLS, "ssl_authorities")}[loaded.ssl_mode]
        for name in needed:
            if getattr(loaded, name) is None:
                [variable], allowed = cls.variables(name), cls.model_fields[name].description
                raise ConfigurationError(
                    f"{variable}: not set, and NIM_SSL_MODE is {loaded.ssl_mode}; set it to "
                    f"{allowed}"
                )
        return loaded

    @property
    def tls(self) -> Tls | None:
        """What the service's gRPC is spoken with, and so what the way to Triton needs."""
        if self.ssl_mode == "disabled":
            return None
        assert self.ssl_certificate is not None and self.ssl_key is not None, "see load"
        authorities = self.ssl_authorities if self.ssl_mode == "mtls" else None
        return Tls(self.ssl_certificate, self.ssl_key, authorities)

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)
