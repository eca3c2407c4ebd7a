from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.profiles.locks import InUse, builder_of, building, lock_path, unused
from tests.dgemma.profiles.stores import write_engine

HOLD = """
import sys
from pathlib import Path
from dgemma.profiles.locks import building
with building(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_builder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that builds `directory` until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_builder_waits_and_is_told_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    with another_builder(tmp_path / "engine") as other:

        def waiting(owner: str) -> None:
            told.append(owner)
            assert other.stdin is not None
            other.stdin.close()

        assert f"process {other.pid} on " in str(builder_of(tmp_path / "engine"))
        with building(tmp_path / "engine", waiting):
            assert other.wait(20) == 0
    assert len(told) == 1 and f"process {other.pid} on " in told[0]
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_builder_is_free(tmp_path: Path) -> None:
    with another_builder(tmp_path / "engine") as other:
        other.kill()
        other.wait()
        assert lock_path(tmp_path / "engine").exists()
        assert builder_of(tmp_path / "engine") is None
        with building(tmp_path / "engine", lambda owner: pytest.fail(owner)):
            pass
    assert builder_of(tmp_path / "engine") is None


def test_waiting_may_refuse_to(tmp_path: Path) -> None:
    def refuse(owner: str) -> None:
        raise ConfigurationError(owner)

    with (
        another_builder(tmp_path / "e"),
        pytest.raises(ConfigurationError, match="process "),
        building(tmp_path / "e", refuse),
    ):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match=r"engine\.lock: cannot be written"),
        building(tmp_path / "file" / "engine"),
    ):
        pass


def test_what_is_used_is_not_unused_until_the_last_user_has_closed(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine")
    first, second = InUse(), InUse()
    first.add(engine)
    second.add(engine)
    for user in (first, second):
        with unused(engine) as free:
            assert not free
        user.close()
    with unused(engine) as free:
        assert free


def test_using_an_engine_needs_no_right_to_write(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine")
    for path in (*engine.iterdir(), engine):
        path.chmod(0o555 if path.is_dir() else 0o444)
    in_use = InUse()
    in_use.add(engine)
    in_use.close()
    engine.chmod(0o755)
