"""The certificate that a server shows, and how this process talks to its own server behind it.

Knows PEM files and the names in a certificate; knows nothing of Triton's other options.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from dgemma.errors import ConfigurationError


@dataclass(frozen=True)
class Tls:
    """PEM files: the certificate, with those that vouch for it behind it, and its private key."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise ConfigurationError where the two cannot be used together."""
        for path, what in ((self.certificate, "certificate"), (self.key, "private key")):
            try:
                path.read_bytes()
            except OSError as error:
                raise ConfigurationError(
                    f"{path}: the TLS {what} cannot be read: {error.strerror}"
                ) from None
        try:
            # A password would be asked for on the terminal, where nobody may be.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=""
            )
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(
                f"{self.certificate}, {self.key}: not a certificate and its unencrypted private "
                f"key, in PEM form: {error}"
            ) from None

    @property
    def options(self) -> tuple[str, ...]:
        """Of tritonserver."""
        return (
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
        )

    def credentials(self) -> grpc.ChannelCredentials:
        """Trust in this very certificate, whoever vouches for it."""
        return grpc.ssl_channel_credentials(self.certificate.read_bytes())

    def name(self, host: str, port: int) -> str:
        """One that the certificate is for; `host` need not be. Raises OSError where nobody listens.

        Raises ConfigurationError where the certificate is no good, for instance expired.
        """
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, port), timeout=5.0) as connection:
            try:
                with context.wrap_socket(connection) as secured:
                    shown: dict[str, Any] = dict(secured.getpeercert() or {})
            except ssl.SSLCertVerificationError as error:
                raise ConfigurationError(
                    f"{self.certificate}: {error.verify_message}; renew it"
                ) from None
        names = [value for _, value in shown.get("subjectAltName", ())]
        names += [v for part in shown.get("subject", ()) for k, v in part if k == "commonName"]
        if not names:
            raise ConfigurationError(f"{self.certificate}: the certificate names no host")
        return str(names[0]).replace("*", "any", 1)
