"""Serves in the foreground: Triton and the HTTP front, supervised, until a signal asks them to end.

Knows settings and what each process is told of them; when a process is started and ended is
`dgemma.supervisor`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.front.settings import FrontSettings
from dgemma.log_lines import configure, of_output, of_triton
from dgemma.settings import Settings
from dgemma.supervisor import configuration, sign
from dgemma.supervisor.events import Exit, Part
from dgemma.supervisor.machine import Machine, Policy
from dgemma.supervisor.parts import FrontPart, Supervised, TritonPart
from dgemma.supervisor.settings import SupervisorSettings
from dgemma.supervisor.supervisor import Supervisor
from dgemma.triton_server import scratch
from dgemma.triton_server.output import line_by_line
from dgemma.triton_server.server import TritonServer, free_ports, reachable

logger = logging.getLogger(__name__)

_KEY_BYTES = 32


@dataclass(frozen=True)
class Everything:
    """What all processes of the service are told."""

    service: Settings
    supervisor: SupervisorSettings
    front: FrontSettings

    @classmethod
    def load(cls) -> Everything:
        """From the environment; raises ConfigurationError."""
        return cls(Settings.load(), SupervisorSettings.load(), FrontSettings.load())


def serve(overrides: Sequence[str] = (), file: Path | None = None, dry_run: bool = False) -> Exit:
    """Serve until it is over, and say how it ended; or print the configuration and do nothing.

    `overrides` are KEY=VALUE. Raises ConfigurationError where the service cannot start.
    """
    found = configuration.read(overrides, file, os.environ)
    os.environ.update(found.values)  # for ourselves and for all that we start
    settings = Everything.load()
    configure("supervisor", settings.service.log_level, settings.service.json_log)
    for advice in found.unknown:
        logger.warning("%s", advice)
    if dry_run:
        everything = (settings.service, settings.supervisor, settings.front)
        print("\n".join(found.lines(everything)))
        return Exit(0)
    return run(settings)


def run(settings: Everything) -> Exit:
    """Serve until it is over."""
    as_json = settings.service.json_log
    scratch.remove_stale()
    with (
        scratch.make() as directory,
        _log(as_json, of_triton) as triton_log,
        _log(as_json, partial(of_output, source="front")) as front_log,
    ):
        triton = _triton(settings, triton_log)
        parts: dict[Part, Supervised] = {Part.TRITON: triton}
        at = f"gRPC {triton.server.grpc_url}, metrics {triton.server.metrics_url}"
        if settings.supervisor.http:
            port = _http_port(settings.front, triton.server)
            parts[Part.FRONT] = _front(triton.server, port, Path(directory), front_log)
            scheme = "http" if settings.front.ssl_mode == "disabled" else "https"
            at += f", HTTP {scheme}://{reachable(settings.front.host)}:{port}"
        say: Callable[[str], None] = logger.info if as_json else _print
        supervisor = Supervisor(
            Machine(_policy(settings, tuple(parts))),
            parts,
            status=Path(directory, sign.STATUS),
            on_ready=lambda: say(f"ready: {at}{_more(settings.service)}; Ctrl-C stops it"),
            on_stop=lambda: say("stopping: finishing what is in flight"),
            drain_delay_s=settings.supervisor.drain_delay_s,
        )
        return asyncio.run(supervisor.run())


def _policy(settings: Everything, parts: tuple[Part, ...]) -> Policy:
    return Policy(
        parts=parts,
        restart=settings.supervisor.on_failure == "restart",
        quiet_s=settings.supervisor.quiet_s,
        stuck_s=settings.supervisor.stuck_s,
        start_timeout_s=settings.service.start_timeout_s,
        drain_timeout_s=settings.service.drain_timeout_s,
    )


def _triton(settings: Everything, log: int | None) -> TritonPart:
    service = settings.service
    probe_key = secrets.token_urlsafe(_KEY_BYTES)
    server = TritonServer(
        settings.supervisor.model_repository,
        env={**service.environment(), "DGEMMA_PROBE_KEY": probe_key},
        host=service.host,
        grpc_port=service.grpc_port,
        metrics_port=service.metrics_port,
        log=log,
        drain_timeout_s=service.drain_timeout_s,
        max_connection_age_s=service.grpc_max_age_s,
        tls=service.tls,
    )
    server.reserve_ports()
    return TritonPart(server, probe_key, service.tls)


def _http_port(settings: FrontSettings, server: TritonServer) -> int:
    port = free_ports(settings.host, {"HTTP": settings.port})["HTTP"]
    if port in server.ports:
        raise ConfigurationError(
            f"NIM_HTTP_API_PORT: got {port}, which is Triton's; expected: a port of its own, or 0"
        )
    return port


def _front(server: TritonServer, port: int, directory: Path, log: int | None) -> FrontPart:
    env = {
        "NIM_HTTP_API_PORT": str(port),
        "DGEMMA_TRITON_URL": server.grpc_url,
        "DGEMMA_TRITON_METRICS_URL": server.metrics_url,
    }
    return FrontPart(env, directory, log)


def _more(service: Settings) -> str:
    secured = ", TLS" if service.ssl_mode != "disabled" else ""
    simulated = "" if service.simulate is None else f", simulated {service.simulate}"
    return f"{secured}, {service.slots} slots{simulated}"


@contextmanager
def _log(as_json: bool, convert: Callable[[str, datetime], str]) -> Iterator[int | None]:
    """What a process writes to; None is our stderr."""
    if not as_json:
        yield None
        return

    def write(line: str) -> None:
        if line.strip():  # Triton sets its tables off by empty ones
            print(convert(line, datetime.now(UTC)), file=sys.stderr, flush=True)

    with line_by_line(write) as descriptor:
        yield descriptor


def _print(text: str) -> None:
    print(text, flush=True)
