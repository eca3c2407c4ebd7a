"""The files of a ledger: a day's records, and the sums that take their place when it is over.

Knows names, formats and what a crash can leave; knows nothing of threads. `DAY.jsonl` has a line
for each request that ended on that day (UTC); `DAY.totals.json` appears whole or not at all, and
from then on counts instead of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dgemma.errors import ConfigurationError
from dgemma.tenants.usage import ByTenant, Entry, Totals, merged, total

logger = logging.getLogger(__name__)

_RECORDS, _TOTALS = ".jsonl", ".totals.json"
_entry = TypeAdapter(Entry)
_by_tenant = TypeAdapter(dict[str, Totals])


class DayFile:
    """One day's records, to be added to; `dirty` = something added may not be on the disk."""

    def __init__(self, path: Path) -> None:
        """Removes what a crash has left of a last line."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        sync_directory(path.parent)
        size = os.fstat(self._file).st_size
        whole = size
        while whole and os.pread(self._file, 1, whole - 1) != b"\n":
            whole -= 1
        if whole < size:
            logger.warning("%s: its last record was not written to its end; removed", path)
            os.ftruncate(self._file, whole)
        self.dirty = whole < size

    def append(self, entries: Iterable[Entry]) -> None:
        """All of them or, with OSError, none."""
        lines = b"".join(_entry.dump_json(entry) + b"\n" for entry in entries)
        end = os.fstat(self._file).st_size
        try:
            while lines:
                lines = lines[os.write(self._file, lines) :]
                self.dirty = True
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def sync(self) -> None:
        if self.dirty:
            os.fsync(self._file)
            self.dirty = False

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class Days:
    """A ledger's directory. Reading needs no lock: a server may write there meanwhile."""

    directory: Path

    def records(self, day: date) -> Path:
        return self.directory / f"{day}{_RECORDS}"

    def all(self) -> list[date]:
        """The days of which anything is known, in order."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except OSError as error:
            raise ConfigurationError(
                f"{self.directory}: no ledger can be read here: {error.strerror}; give the "
                "directory that DGEMMA_LEDGER names"
            ) from None
        found = set()
        for name in names:
            for suffix in (_RECORDS, _TOTALS):
                if name.endswith(suffix) and (day := _day(name.removesuffix(suffix))) is not None:
                    found.add(day)
        return sorted(found)

    def usage(self, since: date = date.min) -> ByTenant:
        """Sums by tenant, of that day and those after it."""
        return merged(self._usage(day) for day in self.all() if day >= since)

    def entries(self, day: date) -> Iterator[Entry]:
        """The day's records; damaged lines are logged and left out, a torn last one is not yet
        written.
        """
        path = self.records(day)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield _entry.validate_json(line)
                except ValidationError:
                    logger.warning("%s:%d: no record of usage; it is left out", path, number)

    def close(self, day: date) -> None:
        """Put sums in the place of the day's records, if that has not been done."""
        totals = self._totals(day)
        if not totals.exists():
            partial = totals.with_suffix(".partial")
            with partial.open("wb") as file:
                file.write(_by_tenant.dump_json(total(self.entries(day)), indent=1) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            partial.rename(totals)
            sync_directory(self.directory)
        self.records(day).unlink(missing_ok=True)

    def first_open(self, today: date) -> date:
        """The day that new records belong to: never one that is closed, whatever the clock says."""
        days = self.all()
        closed = [day for day in days if self._totals(day).exists()]
        return max([today, *days, *(day + timedelta(days=1) for day in closed)])

    def _usage(self, day: date) -> ByTenant:
        try:
            if not self._totals(day).exists():
                return total(self.entries(day))
        except FileNotFoundError:
            pass  # closed in this moment
        path = self._totals(day)
        try:
            return _by_tenant.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(
                f"{path}: cannot be read; restore it, or remove it to do without that day "
                f"({str(error).splitlines()[0]})"
            ) from None

    def _totals(self, day: date) -> Path:
        return self.directory / f"{day}{_TOTALS}"


def sync_directory(directory: Path) -> None:
    """Make sure that the names of its files survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
