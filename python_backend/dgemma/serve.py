"""Keeps the service in the foreground: one Triton server, until a signal asks it to end.

Knows settings and signals; how a server starts and stops is `dgemma.triton_server`'s.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dgemma.log_lines import configure, of_triton
from dgemma.settings import Settings
from dgemma.triton_server.output import line_by_line
from dgemma.triton_server.server import TritonServer
from dgemma.triton_server.tls import Tls

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0


def serve(model_repository: Path) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished.

    Raises ConfigurationError where the server cannot start and EngineFailure where it dies.
    """
    settings = Settings.load()
    stop = threading.Event()
    with _log(settings) as (log, say):
        server = TritonServer(
            model_repository,
            env=settings.environment(),
            host=settings.host,
            grpc_port=settings.grpc_port,
            metrics_port=settings.metrics_port,
            log=log,
            start_timeout_s=settings.start_timeout_s,
            drain_timeout_s=settings.drain_timeout_s,
            tls=_tls(settings),
        )
        with _on_signal(_interrupt), server, _on_signal(stop.set):
            secured = "TLS, " if settings.ssl_mode == "tls" else ""
            say(
                f"ready: gRPC {server.grpc_url}, metrics {server.metrics_url}, {secured}"
                f"{settings.slots} slots{_simulated(settings)}; Ctrl-C stops it"
            )
            while not stop.wait(CHECK_EVERY_S):
                server.check()
            say("stopping: finishing what is in flight")


@contextmanager
def _log(settings: Settings) -> Iterator[tuple[int | None, Callable[[str], None]]]:
    """What the server writes to, None for our stderr, and what we say things with."""
    if not settings.json_log:
        yield None, lambda text: print(text, flush=True)
        return

    def write(line: str) -> None:
        if line.strip():  # Triton sets its tables off by empty ones
            print(of_triton(line, datetime.now(UTC)), file=sys.stderr, flush=True)

    configure("supervisor", settings.log_level, as_json=True)
    with line_by_line(write) as descriptor:
        yield descriptor, logger.info


def _simulated(settings: Settings) -> str:
    return "" if settings.simulate is None else f", simulated {settings.simulate}"


def _tls(settings: Settings) -> Tls | None:
    if settings.ssl_mode == "disabled":
        return None
    assert settings.ssl_certs is not None and settings.ssl_key is not None, "see Settings.load"
    return Tls(settings.ssl_certs, settings.ssl_key)


def _interrupt() -> None:
    """While the server starts or stops, a signal ends it at once and cleanly."""
    raise KeyboardInterrupt


@contextmanager
def _on_signal(action: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `action` inside the block."""
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: action()) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
