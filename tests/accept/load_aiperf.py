"""NVIDIA's load generator and ours on the same service, one after the other, under the same load.

The service simulates passes of a GPU, and every canvas takes the same steps, so that what differs
is the generators'.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgemma_loadtest import recording
from dgemma_loadtest.metrics.quantiles import percentile
from dgemma_loadtest.records import Outcome
from tests.accept.aiperf import TOKENIZER, VERSION, installed, offline, report_in
from tests.accept.load_service import PLATFORM, run, written
from tests.accept.main_job import Line
from tests.accept.surface_service import MODEL, surface

USERS, TOKENS = 4, 512
AGREES = 0.05
FIT = "context=4096,characters=1"  # a token of the demo checkpoint is a byte
SAMPLING = {"ignore_eos": True, "preset": "fast"}


def aiperf_agrees(engine: Path, checkpoint: Path, requests: int) -> Iterator[Line]:
    """Throughput and medians of both; `engine` is not used, because passes are simulated."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        environment = {
            "DGEMMA_SIMULATE": f"{PLATFORM}-h200",
            "DGEMMA_SLOTS": str(USERS),
            "NIM_MAX_MODEL_LEN": "4096",
        }
        with surface(engine, checkpoint, scratch, environment) as service:
            theirs = _aiperf(service.http_url, checkpoint, requests, scratch)
            ours = _ours(service.http_url, checkpoint, requests, scratch)
    for what, unit in (
        ("tokens/s", 1.0),
        ("requests/s", 1.0),
        ("first block, p50, ms", 1e3),
        ("end, p50, ms", 1e3),
    ):
        off = ours[what] / theirs[what] - 1
        yield Line(
            f"aiperf {VERSION}: {what}",
            f"{unit * theirs[what]:.4g}, ours {unit * ours[what]:.4g}: {off:+.1%}",
            f"± {AGREES:.0%}",
            abs(off) <= AGREES,
        )


def _ours(url: str, checkpoint: Path, requests: int, scratch: Path) -> dict[str, float]:
    load = {
        "users": USERS,
        "prompts": {"prose": 1},
        "prompt_tokens": 64,
        "answer_tokens": TOKENS,
        "sampling": SAMPLING,
    }
    stage = {"name": "same", "duration_s": 600, "requests": requests, "loads": [load]}
    scenario = written(scratch / "same.yaml", {"schema": 1, "name": "same", "stages": [stage]})
    options = ("--target", url, "--model", MODEL, "--fit", FIT)
    ran = run(scenario, scratch / "ours", *options, checkpoint=checkpoint)
    found = [r for r in recording.read(ran.out) if r.outcome is Outcome.OK]
    if len(found) < requests:
        raise RuntimeError(f"{len(found)} of {requests} answered:\n{ran.said[-2000:]}")
    took = max(r.ended_s for r in found) - min(r.scheduled_s for r in found)
    tokens = sum((r.usage.useful_tokens or 0) for r in found if r.usage is not None)
    return {
        "tokens/s": tokens / took,
        "requests/s": len(found) / took,
        "first block, p50, ms": percentile(
            [r.first_s - r.scheduled_s for r in found if r.first_s is not None], 0.5
        ),
        "end, p50, ms": percentile([r.ended_s - r.scheduled_s for r in found], 0.5),
    }


def _aiperf(url: str, checkpoint: Path, requests: int, scratch: Path) -> dict[str, float]:
    tokenizer, out = scratch / "tokenizer", scratch / "theirs"
    tokenizer.mkdir()
    shutil.copy(checkpoint / "tokenizer.json", tokenizer)
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    command = [
        *(str(installed()), "profile", "--model", MODEL, "--url", url),
        *("--endpoint-type", "chat", "--streaming", "--tokenizer", str(tokenizer)),
        *("--use-server-token-count", "--concurrency", str(USERS)),
        *("--request-count", str(requests), "--synthetic-input-tokens-mean", "64"),
        *("--output-tokens-mean", str(TOKENS), "--ui", "none", "--artifact-dir", str(out)),
    ]
    for name, value in SAMPLING.items():
        command += ["--extra-inputs", f"{name}:{json.dumps(value).strip(chr(34))}"]
    ran = offline(command)
    report = report_in(out)
    if not report:
        raise RuntimeError(f"aiperf: exit {ran.returncode}: {ran.stdout.decode()[-2000:]}")
    return {
        "tokens/s": _of(report, "output_token_throughput", "avg"),
        "requests/s": _of(report, "request_throughput", "avg"),
        "first block, p50, ms": _of(report, "time_to_first_token", "p50") / 1e3,
        "end, p50, ms": _of(report, "request_latency", "p50") / 1e3,
    }


def _of(report: dict[str, Any], name: str, point: str) -> float:
    return float(report[name][point])
