"""Runs the front: in the foreground until a signal, or on a thread beside other work.

Knows uvicorn, sockets and signals; knows nothing of endpoints.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from dgemma.errors import ConfigurationError
from dgemma.front.app import create_app
from dgemma.front.connection import protocol
from dgemma.front.health import Judge, Readiness
from dgemma.front.settings import FrontSettings
from dgemma.front.supervised import Announced
from dgemma.log_lines import configure

logger = logging.getLogger(__name__)

_HEADER_BYTES = 32 * 1024
_KEEP_ALIVE_S = 75  # longer than the load balancers' usual 60: they must be the ones to close


class FrontServer(uvicorn.Server):
    """The front's server; it is not ready any more from the moment that it is told to end."""

    def __init__(self, settings: FrontSettings) -> None:
        self.readiness = _readiness(settings)
        tls = _tls(settings)
        self.socket = _bind(settings.host, settings.port)
        host, port = self.socket.getsockname()[:2]
        scheme = "http" if settings.ssl_mode == "disabled" else "https"
        self.url = f"{scheme}://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        super().__init__(
            uvicorn.Config(
                create_app(settings, self.readiness),
                http=protocol(settings.read_timeout_s, settings.write_timeout_s),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=settings.drain_timeout_s,
                **tls,
            )
        )

    def stop(self) -> None:
        """Take no more connections, finish what is in flight, and end; returns at once."""
        self.readiness.close("the front is stopping")
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.readiness.close("the front is stopping")
        super().handle_exit(sig, frame)


def serve(settings: FrontSettings) -> None:
    """Serve until SIGINT or SIGTERM, finish what is in flight, and end the process with code 0.

    Raises ConfigurationError where the port cannot be used.
    """
    configure("front", settings.log_level, settings.json_log)
    server = FrontServer(settings)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn repeats the one that ended it
        signal.signal(number, lambda *_: sys.exit(0))
    listening = f"listening: {server.url}, Triton at {settings.triton_url}"
    if settings.supervised is None:
        listening += "; Ctrl-C stops it"
    if settings.json_log or settings.supervised is not None:
        logger.info(listening)
    else:
        print(listening, flush=True)
    asyncio.run(server.serve(sockets=[server.socket]))


@contextmanager
def running(settings: FrontSettings) -> Iterator[FrontServer]:
    """A server on a thread of its own, which takes requests inside the block."""
    server = FrontServer(settings)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[server.socket])), name="front", daemon=True
    )
    thread.start()
    try:
        yield server  # the socket listens already; connections wait there until uvicorn is up
    finally:
        server.stop()
        thread.join()


def _readiness(settings: FrontSettings) -> Judge:
    if settings.supervised is not None:
        return Announced(settings.supervised)
    key = settings.probe_api_key
    return Readiness(
        timeout_s=settings.ready_timeout_s,
        cache_s=settings.ready_cache_s,
        api_key=key.get_secret_value() if key else None,
    )


def _tls(settings: FrontSettings) -> dict[str, Any]:
    """uvicorn's options; ConfigurationError where the files are none."""
    if settings.ssl_mode == "disabled":
        return {}
    mutual = settings.ssl_mode == "mtls"
    options: dict[str, Any] = {
        "ssl_keyfile": str(settings.ssl_key),
        "ssl_certfile": str(settings.ssl_certificate),
    }
    if mutual:
        options["ssl_ca_certs"] = str(settings.ssl_authorities)
        options["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    try:  # uvicorn reads them when it starts, which is too late to say what is wrong
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options["ssl_certfile"], options["ssl_keyfile"])
        if mutual:
            context.load_verify_locations(options["ssl_ca_certs"])
    except OSError as error:
        raise ConfigurationError(
            f"NIM_SSL_KEY_PATH, NIM_SSL_CERTS_PATH, NIM_SSL_CA_CERTS_PATH: no key and certificates "
            f"in PEM form that belong together: {error}"
        ) from None
    return options


def _bind(host: str, port: int) -> socket.socket:
    # Of a socket that names no protocol, asyncio does not know that it is TCP, and leaves
    # Nagle's algorithm on: every answer would wait for an acknowledgement, some 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"HTTP port {port} of {host} cannot be used: {error.strerror}; choose another with "
            "NIM_HTTP_API_PORT"
        ) from None
    return listener
