"""The server that knows the truth, started and stopped for a test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class TruthServer:
    grpc: str
    http: str
    log: Path
    process: subprocess.Popen[str]

    def truth(self) -> list[dict[str, Any]]:
        """What has ended so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stall(self) -> None:
        """For as long as it was told at the start it does nothing at all."""
        self.process.send_signal(signal.SIGUSR1)


@contextmanager
def truth_server(*options: str, core: int | None = None) -> Iterator[TruthServer]:
    """`options` as its command line takes them; `core` pins it."""
    pin = [] if core is None else ["taskset", "-c", str(core)]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "truth.jsonl"
        command = [*pin, sys.executable, "-m", "tests.loadtest.truth_server", "--log", str(log)]
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        try:
            assert process.stdout is not None
            grpc, http = process.stdout.readline().split()
            yield TruthServer(f"grpc://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", log, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
