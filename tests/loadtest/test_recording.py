"""Records and runs on disk: whole after a cut, refused where they are something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma_loadtest import recording, run_file
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.records import Chunk, Outcome
from tests.loadtest.make import record, run_of, usage


def test_a_record_survives_its_line() -> None:
    one = record(1.5, 0.25, 0.5, usage=usage(3, 4, queue_s=0.1), outcome=Outcome.LATE, code="X")
    assert recording.from_json(recording.to_line(one)) == one
    foreign = record(chunks=(Chunk(0.1, "text", 5),), outcome=Outcome.UNSENT, started_s=None)
    assert recording.from_json(recording.to_line(foreign)) == foreign


def test_a_torn_end_is_left_out(tmp_path: Path) -> None:
    whole = [record(2.0, 0.5), record(1.0, 0.5)]
    with recording.Writer(tmp_path / recording.FILE) as writer:
        writer.add(*whole)
    path = tmp_path / recording.FILE
    path.write_bytes(path.read_bytes() + recording.to_line(record(3.0))[:50])
    assert [r.scheduled_s for r in recording.read(tmp_path)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{}\n", r"records.jsonl:2: id: Field required"),
        (b"nonsense\n", r"records.jsonl:2: line: Invalid JSON"),
        (recording.to_line(record()).replace(b'version":1', b'version":9'), "2: schema_version"),
    ],
)
def test_other_lines_are_named(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / recording.FILE).write_bytes(recording.to_line(record()) + line)
    with pytest.raises(InputError, match=said):
        recording.read(tmp_path)


def test_runs(tmp_path: Path) -> None:
    run = run_of(notes=("a note",))
    run_file.write(run, tmp_path)
    assert run_file.read(tmp_path) == run
    (tmp_path / run_file.FILE).write_text('{"target": 5}')
    with pytest.raises(InputError, match=r"run\.json: target"):
        run_file.read(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run's directory"):
        recording.read(tmp_path)
    with pytest.raises(InputError, match="give a run's directory"):
        run_file.read(tmp_path)
