"""What `nim-serve` says before anything is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dgemma.log_lines import is_ours
from tests.triton.servers import without_settings

PATIENCE_S = 60.0


def run_serve(
    tmp_path: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`nim-serve`, with directories that exist, in a process whose environment it may change."""
    ports = ("NIM_TRITON_GRPC_PORT", "NIM_TRITON_METRICS_PORT", "NIM_HTTP_API_PORT")
    directories = {"NIM_MODEL_PATH": str(tmp_path), "DGEMMA_CHECKPOINT": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", "from dgemma.cli_serve import main; main()", *arguments],
        env={
            **without_settings(os.environ),
            **dict.fromkeys(ports, "0"),
            **directories,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_serve_refuses_a_repository_that_is_not_there(tmp_path: Path) -> None:
    ended = run_serve(tmp_path, "--model-repository", "/no/such")
    assert (ended.returncode, ended.stderr) == (2, "error: /no/such: no such model repository\n")


def test_serve_without_settings_says_which_one_is_missing(tmp_path: Path) -> None:
    nothing = {"NIM_MODEL_PATH": "", "NIM_CACHE_PATH": str(tmp_path / "none")}
    ended = run_serve(tmp_path, **nothing, NIM_JSONL_LOGGING="true")
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert is_ours(line)
    said = json.loads(line)
    assert said["message"].startswith("NIM_MODEL_PATH: not set; set it")
    assert (said["source"], said["level"]) == ("supervisor", "error")


def test_a_dry_run_says_where_every_setting_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text("DGEMMA_THREADS = 2\n")
    ended = run_serve(
        *(tmp_path, "--dry-run", "--config", str(file), "--set", "DGEMMA_SLOTS=3"),
        NIM_LOG_LEVEL="error",
        NIM_LOG_LEVL="debug",
    )
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert "DGEMMA_SLOTS = 3  # command line" in lines
    assert 'NIM_LOG_LEVEL = "error"  # environment' in lines
    assert f"DGEMMA_THREADS = 2  # {file}" in lines
    assert "DGEMMA_HTTP = true  # default" in lines


def test_a_variable_that_nobody_reads_is_reported(tmp_path: Path) -> None:
    ended = run_serve(tmp_path, "--dry-run", NIM_LOG_LEVL="debug", NIM_JSONL_LOGGING="1")
    assert ended.returncode == 0
    [line] = [line for line in ended.stderr.splitlines() if "NIM_LOG_LEVL" in line]
    assert json.loads(line)["message"].endswith("did you mean NIM_LOG_LEVEL?")
