"""The command line: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgemma_loadtest.cli import app
from dgemma_loadtest.errors import InputError
from tests.loadtest.server import TruthServer

RUNNER = CliRunner()
SCENARIO = """
schema: 1
name: short
stages:
  - {name: now, duration_s: 0.5, loads: [{tenant: a, users: 2}, {tenant: b, users: 2}]}
"""


@pytest.fixture
def short(tmp_path: Path) -> str:
    path = tmp_path / "short.yaml"
    path.write_text(SCENARIO)
    return str(path)


def run(*arguments: str) -> str:
    result = RUNNER.invoke(app, ["run", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    # A machine that is too busy for the figures to count is said, and is no success.
    assert result.exit_code == 3 * ("SPOILED" in result.output), result.output
    return result.output


def test_a_run_and_its_baseline(server: TruthServer, short: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = run(
        *("--scenario", short, "--target", server.grpc, "--baseline", server.http),
        *("--out", str(out), "--slo", "ttfb=2", "--seed", "5"),
    )
    for directory in (out, out / "baseline"):
        assert {path.name for path in directory.iterdir()} >= {
            *("records.jsonl", "run.json", "summary.json", "summary.csv"),
        }
    assert json.loads((out / "baseline" / "run.json").read_text())["target"] == server.http
    for words in (
        "short on grpc://",
        "short on http://",
        "now",
        "  a",
        "  b",
        "the generator sent",
    ):
        assert words in shown
    assert "simulated: no figure here was measured on a GPU" in shown


def test_scenarios_are_named() -> None:
    shown = RUNNER.invoke(app, ["scenarios"]).output
    assert "multi-tenant" in shown and "rate-sweep" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "localhost:8001"], "target: got 'localhost:8001'; allowed: grpc://HOST:PORT"),
        (["--target", "grpc://localhost"], "target: got"),
        (["--baseline", "ftp://x"], "baseline: got 'ftp://x'"),
        (["--scenario", "no-such"], "there is no 'no-such'"),
        (["--slo", "ttft=1"], "slo: got 'ttft=1'; allowed"),
        (["--fit", "tokens=3"], "fit: got 'tokens=3'"),
        (["--tenant-target", "a"], "tenant-target: got 'a'; allowed: TENANT=URL"),
        (["--tenant-keys", "/no/such"], "tenant-keys: /no/such: cannot be read"),
        (["--class", "nonsense"], "there is no class 'nonsense'"),
        (["--prompts", "/no/such"], "prompts: /no/such"),
        (["--out", "/dev/null/out"], "out: /dev/null/out: cannot be written"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, short: str, tmp_path: Path) -> None:
    defaults = {"--scenario": short, "--target": "grpc://127.0.0.1:9", "--out": str(tmp_path / "o")}
    given = {**defaults, **dict([arguments])}
    with pytest.raises(InputError) as caught:
        run(*(part for pair in given.items() for part in pair))
    assert said in str(caught.value)


def test_keys_that_are_none(short: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- a\n- b\n")
    with pytest.raises(InputError, match="must be lines of `tenant: key`"):
        run(*("--scenario", short, "--target", "grpc://127.0.0.1:9", "--out", str(tmp_path / "o")),
            *("--tenant-keys", str(keys)))  # fmt: skip


def test_bad_input_has_an_exit_code_of_its_own() -> None:
    command = [sys.executable, "-m", "dgemma_loadtest.cli", "run", "--scenario", "x"]
    done = subprocess.run(
        [*command, "--target", "y", "--out", "z"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: scenario: there is no 'x'")


def test_it_is_a_black_box() -> None:
    """Neither the service nor the builder is imported by anything of the load test."""
    code = (
        "import sys, pkgutil, importlib, dgemma_loadtest as d\n"
        "for m in pkgutil.walk_packages(d.__path__, 'dgemma_loadtest.'):\n"
        "    'swarm' in m.name or importlib.import_module(m.name)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('dgemma', 'dgemma_build', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
