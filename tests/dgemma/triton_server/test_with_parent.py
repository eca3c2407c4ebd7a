from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgemma.triton_server import with_parent

PATIENCE_S = 20.0
WRAPPER = [sys.executable, "-I", "-S", with_parent.__file__]
# Starts a command as its child and prints the child's pid.
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([*sys.argv[1:-1], str(os.getpid()), "/bin/sleep", "600"])
print(child.pid, flush=True)
time.sleep(600)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WRAPPER, *command], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def executable(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def wait_until(pid: int, alive: bool, name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (executable(pid) == name) is not alive:
        assert time.monotonic() < deadline, f"{pid} is {executable(pid)!r}"
        time.sleep(0.005)


def test_the_command_takes_the_place_of_the_wrapper() -> None:
    script = "import os, sys; print(os.getpid(), *sys.argv[1:]); sys.exit(7)"
    command = [*WRAPPER, str(os.getpid()), sys.executable, "-c", script, "a b", "c"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == (f"{process.pid} a b c\n", 7)


def test_a_command_whose_parent_has_already_gone_does_not_start(tmp_path: Path) -> None:
    trace = tmp_path / "started"
    process = run("1", "/bin/touch", str(trace))
    assert process.returncode == 1
    assert process.stderr == "the parent ended before its child began\n"
    assert not trace.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_ends_when_its_parent_does_however_that_ends(number: int) -> None:
    sleep = os.path.basename(os.path.realpath("/bin/sleep"))
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT, *WRAPPER, ""], stdout=subprocess.PIPE, text=True
    )
    child = 0
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(child, True, sleep)
        parent.send_signal(number)
        parent.wait(PATIENCE_S)
        wait_until(child, False, sleep)
    finally:
        parent.kill()
        parent.communicate()
        if child and executable(child) == sleep:
            os.kill(child, signal.SIGKILL)
