"""NVIDIA's load generator against the front, without a network.

Knows how it is installed, started and read; it has an environment of its own, because it needs
other versions of much that the service uses.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.accept.main_job import Line
from tests.accept.surface_service import MODEL

VERSION = "0.13.0"
ENVIRONMENT = Path("var/aiperf")
TIMEOUT_S = 400
# It reads a prompt's length with it; ours has the tokens alone.
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024}


def aiperf(url: str, checkpoint: Path, requests: int, scratch: Path) -> Iterator[Line]:
    """One streamed run, whose report has every request and no error."""
    tokenizer, out = scratch / "tokenizer", scratch / "aiperf"
    tokenizer.mkdir()
    shutil.copy(checkpoint / "tokenizer.json", tokenizer)
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    command = [
        *(str(installed()), "profile", "--model", MODEL, "--url", url),
        *("--endpoint-type", "chat", "--streaming", "--tokenizer", str(tokenizer)),
        *("--use-server-token-count", "--concurrency", "4", "--request-count", str(requests)),
        *("--synthetic-input-tokens-mean", "64", "--output-tokens-mean", "96"),
        *("--ui", "none", "--artifact-dir", str(out)),
    ]
    ran = offline(command)
    report = report_in(out)
    completed = int(report.get("request_count", {}).get("avg", 0))
    errors = int(report.get("error_request_count", {}).get("avg", 0))
    seen = f"exit {ran.returncode}, {completed} of {requests} answered, {errors} errors"
    if not report:
        seen += f": {ran.stdout.decode(errors='replace')[-300:]}"
    holds = ran.returncode == 0 and completed == requests and errors == 0
    yield Line(f"aiperf {VERSION}, streamed", seen, f"{requests}, no errors", holds)


def offline(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run it without the variable with which it refuses a tokenizer in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )


def installed() -> Path:
    program = ENVIRONMENT / "bin" / "aiperf"
    mark = ENVIRONMENT / f"aiperf-{VERSION}"
    if not mark.exists():
        print(f"installing aiperf {VERSION} in {ENVIRONMENT} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", f"aiperf=={VERSION}"]
        subprocess.run(pip, check=True)
        mark.touch()
    return program.absolute()


def report_in(out: Path) -> dict[str, Any]:
    for file in out.rglob("profile_export_aiperf.json"):
        return dict(json.loads(file.read_text()))
    return {}
