"""Whether the service of this container is ready: exit code 0 or 1, for a container's HEALTHCHECK.

Knows the environment variables that say where HTTP is; needs nothing but the standard library, for
it is started every few seconds.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT_S = 4.0
PATH = "/v1/health/ready"
_OFF = ("0", "false", "off", "no", "n", "f")


def trouble() -> str | None:
    """Why the service is not ready; None where it is."""
    mode = _set("NIM_SSL_MODE").lower()
    http = _set("DGEMMA_HTTP").lower() not in _OFF
    ports = ("NIM_HTTP_API_PORT", "NIM_SERVER_PORT") if http else ("NIM_TRITON_GRPC_PORT",)
    address = _host(), int(next(filter(None, map(_set, ports)), 8000 if http else 8001))
    try:
        if mode == "mtls" or not http:
            # Without a client's certificate, or HTTP: whether anything listens has to do.
            socket.create_connection(address, TIMEOUT_S).close()
            return None
        return _answer(address, tls=mode == "tls")
    except (OSError, HTTPException) as error:
        return f"{address[0]}:{address[1]}: {error!r}"


def _answer(address: tuple[str, int], *, tls: bool) -> str | None:
    host, port = address
    if tls:
        # The certificate is for the name that clients use, which is not this address.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", PATH)
        reply = connection.getresponse()
        body = reply.read().decode(errors="replace")
    finally:
        connection.close()
    return None if reply.status == 200 else f"{PATH} answered {reply.status}: {body}"


def _host() -> str:
    host = _set("DGEMMA_HOST")
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _set(variable: str) -> str:
    return os.environ.get(variable, "").strip()


if __name__ == "__main__":
    sys.exit(trouble())
