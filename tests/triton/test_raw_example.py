"""The README's example of a raw tritonclient does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
MOST_LINES = 16


@pytest.fixture(scope="module")
def example() -> str:
    """The first Python block with a raw tritonclient in it."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)
    return next(block for block in blocks if "tritonclient.grpc" in block)


def test_the_raw_example_prints_an_answer(example: str, url: str) -> None:
    assert "localhost:8001" in example
    program = example.replace("localhost:8001", url)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    text, usage = done.stdout.split("\n", 1)
    assert text.strip()
    assert '"completion_tokens"' in usage


def test_the_raw_example_is_short(example: str) -> None:
    code = [line for line in example.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(code) <= MOST_LINES
