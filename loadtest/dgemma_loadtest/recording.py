"""Records on disk: appended while a run goes on, read back whole.

Knows lines, torn ends and schema versions; knows nothing of what the fields mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.records import SCHEMA, Record

FILE = "records.jsonl"
_RECORD = TypeAdapter(Record)


def to_line(record: Record) -> bytes:
    """One line of JSON, with its end."""
    return _RECORD.dump_json(record, exclude_none=True) + b"\n"


def from_json(line: bytes | str) -> Record:
    """Raises ValueError where the line is no record of this schema."""
    record = _RECORD.validate_json(line)
    if record.schema_version != SCHEMA:
        raise ValueError(
            f"schema_version: got {record.schema_version}, this version reads {SCHEMA}"
        )
    return record


class Writer:
    """Appends records; each is with the operating system as soon as `add` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, *records: Record) -> None:
        self.add_lines(map(to_line, records))

    def add_lines(self, lines: Iterable[bytes]) -> None:
        rest = b"".join(lines)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Record]:
    """All records of a file, or of `records.jsonl` in a directory, in the order of their arrival.

    A last line that was cut off is left out. Raises InputError naming the line for any other
    mistake.
    """
    path = path / FILE if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a run's directory"
        ) from None
    return sorted(_parsed(path, content), key=lambda record: record.scheduled_s)


def _parsed(path: Path, content: bytes) -> Iterator[Record]:
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # behind the last line's end there is nothing
        try:
            yield from_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise InputError(f"{path}:{number}: {where}: {first['msg']}") from None
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
