from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dgemma.cli import app
from dgemma.tenants.days import DayFile, Days
from dgemma.tenants.keys import KeyHash, generate_key
from dgemma.tenants.usage import Entry
from tests.dgemma.tenants.tenant_files import ACME, OTHER, file_of, tenant
from tests.dgemma.tenants.test_days import AT

KEY = generate_key()


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["tenants", *arguments], input=stdin)


def matches(text: str, key: str) -> bool:
    assert text.endswith("\n") and text.count("\n") == 1
    return KeyHash.parse(text.rstrip("\n")).matches(key)


@pytest.mark.parametrize("command", ["hash-key", "check", "usage"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert (result.exit_code, "Usage" in result.output) == (0, True)


# hash-key


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_key_is_hashed_from_standard_input(end: str) -> None:
    result = run("hash-key", stdin=KEY + end)
    assert (result.exit_code, result.stderr) == (0, "")
    assert matches(result.stdout, KEY)


def test_a_generated_key_is_shown_beside_its_hash_and_once() -> None:
    result = run("hash-key", "--generate")
    assert result.exit_code == 0
    key = result.stderr.rstrip("\n").rpartition(" ")[2]
    assert matches(result.stdout, key)
    assert result.output.count(key) == 1
    assert not matches(run("hash-key", "--generate").stdout, key)


def test_a_key_is_not_taken_from_the_command_line() -> None:
    assert run("hash-key", KEY).exit_code == 2


@pytest.mark.parametrize("key", ["", "short", "two words " * 8])
def test_a_key_that_will_not_do_is_refused_and_not_repeated(key: str) -> None:
    result = run("hash-key", stdin=key)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the key ")
    assert not key or key not in result.output


def test_at_a_terminal_the_key_is_asked_for_and_not_shown() -> None:
    ours, theirs = pty.openpty()
    command = "from dgemma.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "tenants", "hash-key"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"API key" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, KEY.encode() + b"\n")
    output, _ = process.communicate(timeout=60)
    assert matches(output.decode(), KEY)
    os.set_blocking(ours, False)
    with contextlib.suppress(OSError):
        shown += os.read(ours, 1000)
    assert KEY.encode() not in shown
    os.close(ours)


# check


def test_a_right_file_is_shown_as_it_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    limits = "weight: 2\nlimits: {tokens_per_minute: 200000}"
    file.write_text(file_of(tenant("acme", ACME, limits), tenant("b", OTHER)))
    result = run("check", str(file))
    assert result.exit_code == 0, result.output
    header, acme, b, verdict = result.stdout.splitlines()
    assert header.split() == [
        *("tenant", "weight", "keys", "tokens", "per", "minute"),
        *("min", "priority", "max", "priority"),
    ]
    assert acme.split() == ["acme", "2", f"{ACME[:12]}…", "200", "000", "0", "0"]
    assert b.split() == ["b", "1", f"{OTHER[:12]}…", "-", "0", "0"]
    assert verdict.startswith(f"{file}: right; 2 tenants, 0 shared prefixes")
    assert "for one server" in verdict


def test_everything_wrong_is_an_error_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(file_of(tenant("acme", ACME, "weight: 0"), tenant("B", OTHER)))
    result = run("check", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {file}:4: tenants[0].weight: ")
    assert second.startswith(f"error: {file}:5: tenants[1].name: ")


def test_a_file_that_is_not_there_is_named() -> None:
    result = run("check", "/no/such.yaml")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: /no/such.yaml: cannot be read: No such file or directory\n",
    )


# usage


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    days = Days(tmp_path)
    for day, entries in {
        date(2026, 11, 24): [Entry(AT, "acme", "stop", 1000, 96, 8)],
        date(2026, 11, 25): [Entry(AT, "acme", "stop", 1, 2, 3), Entry(AT, "b", "failed", 0, 0, 1)],
    }.items():
        file = DayFile(days.records(day))
        file.append(entries)
        file.close()
    days.close(date(2026, 11, 24))
    return tmp_path


def test_usage_is_a_line_for_each_tenant(ledger: Path) -> None:
    result = run("usage", str(ledger))
    assert result.exit_code == 0, result.output
    header, acme, b = result.stdout.splitlines()
    assert header.split() == [
        *("tenant", "requests", "rejected", "failed", "prompt", "tokens"),
        *("completion", "tokens", "service", "units"),
    ]
    assert acme.split() == ["acme", "2", "0", "0", "1", "001", "98", "11"]
    assert b.split() == ["b", "1", "0", "1", "0", "0", "1"]


def test_usage_since_a_day_as_json(ledger: Path) -> None:
    result = run("usage", str(ledger), "--since", "2026-11-25", "--json")
    assert json.loads(result.stdout)["acme"] == {
        "requests": 1,
        "rejected": 0,
        "failed": 0,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "service_units": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["/no/such"], "no ledger can be read here"), ([".", "--since", "yesterday"], "yesterday")],
)
def test_bad_input_is_named(arguments: list[str], says: str) -> None:
    result = run("usage", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
