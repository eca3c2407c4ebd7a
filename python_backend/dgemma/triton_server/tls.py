"""The certificate that a server shows, and how its own processes talk to it.

Knows PEM files and the names in a certificate; knows nothing of Triton's other options.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from dgemma.errors import ConfigurationError


@dataclass(frozen=True)
class Tls:
    """PEM files: the certificate, with those that vouch for it behind it, and its private key.

    With `authorities`, clients need certificates that these vouch for. Our own processes show the
    server's.
    """

    certificate: Path
    key: Path
    authorities: Path | None = None

    def check(self) -> None:
        """Raise ConfigurationError where the files cannot be used together."""
        for path, what in (
            (self.certificate, "certificate"),
            (self.key, "private key"),
            *([(self.authorities, "authorities' file")] if self.authorities else []),
        ):
            try:
                path.read_bytes()
            except OSError as error:
                raise ConfigurationError(
                    f"{path}: the TLS {what} cannot be read: {error.strerror}"
                ) from None
        _ = self.name  # raises

    @property
    def options(self) -> tuple[str, ...]:
        """Of tritonserver."""
        files = (f"--grpc-server-cert={self.certificate}", f"--grpc-server-key={self.key}")
        if self.authorities is None:
            return ("--grpc-use-ssl=true", *files)
        return ("--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.authorities}")

    def credentials(self) -> grpc.ChannelCredentials:
        """Trust in this very certificate, whoever vouches for it."""
        certificate = self.certificate.read_bytes()
        if self.authorities is None:
            return grpc.ssl_channel_credentials(certificate)
        return grpc.ssl_channel_credentials(certificate, self.key.read_bytes(), certificate)

    @property
    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """Of a channel to that server, at an address that the certificate need not name."""
        return (("grpc.ssl_target_name_override", self.name),)

    @property
    def name(self) -> str:
        """A host that the certificate is for.

        Raises ConfigurationError where a client would refuse the certificate, for instance because
        it has expired.
        """
        shown = _shown(self._server(), self._client(), self.certificate)
        names = [value for _, value in shown.get("subjectAltName", ())]
        names += [v for part in shown.get("subject", ()) for k, v in part if k == "commonName"]
        if not names:
            raise ConfigurationError(f"{self.certificate}: the certificate names no host")
        return str(names[0]).replace("*", "any", 1)

    def _server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load_pair(context)
        if self.authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            self._load_authorities(context, self.authorities)
        return context

    def _client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._load_authorities(context, self.certificate)
        if self.authorities is not None:
            self._load_pair(context)
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        try:
            # A password would be asked for on the terminal, where nobody may be.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.certificate}, {self.key}: not a certificate and its unencrypted private "
                f"key, in PEM form: {error}"
            ) from None

    def _load_authorities(self, context: ssl.SSLContext, path: Path) -> None:
        try:
            context.load_verify_locations(path)
        except OSError as error:
            raise ConfigurationError(f"{path}: no certificates in PEM form: {error}") from None


def _shown(server: ssl.SSLContext, client: ssl.SSLContext, certificate: Path) -> dict[str, Any]:
    """The certificate that the client is shown, as `getpeercert` has it; nothing is sent."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(4):  # more turns than any handshake needs
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise ConfigurationError(
            f"{certificate}: {error.verify_message}; renew it, or name an authority that vouches "
            "for it: the service also talks to itself with it"
        ) from None
    except ssl.SSLError as error:
        raise ConfigurationError(f"{certificate}: no use for TLS: {error}") from None
    return dict(ends[0].getpeercert() or {})
