from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.tenants.days import DayFile, Days
from dgemma.tenants.usage import Entry, Totals

DAY = date(2026, 11, 25)
NEXT = DAY + timedelta(days=1)
AT = datetime(2026, 11, 25, 23, 59, 59, 123000, tzinfo=UTC)
ENTRY = Entry(AT, "acme", "stop", 3, 4, 8)
SUM = Totals(1, 0, 0, 3, 4, 8)


def write(path: Path, *entries: Entry) -> None:
    file = DayFile(path)
    file.append(entries)
    file.close()


@pytest.fixture
def days(tmp_path: Path) -> Days:
    return Days(tmp_path)


def test_what_is_appended_is_read_again(days: Days) -> None:
    write(days.records(DAY), ENTRY)
    write(days.records(DAY), ENTRY, ENTRY)
    assert list(days.entries(DAY)) == [ENTRY] * 3
    assert days.usage() == {"acme": SUM + SUM + SUM}


def test_a_record_is_a_line_that_others_can_read(days: Days) -> None:
    write(days.records(DAY), ENTRY)
    assert days.records(DAY).read_text() == (
        '{"at":"2026-11-25T23:59:59.123000Z","tenant":"acme","outcome":"stop",'
        '"prompt_tokens":3,"completion_tokens":4,"service_units":8,"requests":1}\n'
    )


def test_a_torn_last_line_is_nothing_to_a_reader_and_removed_by_the_next_writer(
    days: Days,
) -> None:
    path = days.records(DAY)
    write(path, ENTRY, ENTRY)
    whole = path.read_bytes()
    for end in range(len(whole) // 2 + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert list(days.entries(DAY)) == [ENTRY]
        write(path, ENTRY)
        assert path.read_bytes() == whole


def test_a_file_of_nothing_but_a_torn_line_begins_anew(days: Days) -> None:
    days.records(DAY).write_bytes(b'{"at":"20')
    write(days.records(DAY), ENTRY)
    assert list(days.entries(DAY)) == [ENTRY]


@pytest.mark.parametrize(
    "line",
    [b"\x00" * 40, b"", b"{}", b"[1]", b"\xff", b'{"at":"2026-11-25T00:00:00Z","tenant":"a"}'],
)
def test_a_damaged_line_is_named_and_left_out(
    days: Days, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(days.records(DAY), ENTRY)
    with days.records(DAY).open("ab") as file:
        file.write(line + b"\n")
    write(days.records(DAY), ENTRY)
    assert list(days.entries(DAY)) == [ENTRY, ENTRY]
    assert f"{days.records(DAY)}:2: no record" in caplog.text


def test_nothing_is_left_of_what_could_not_be_written_whole(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of a record; later there is room again."""
    file = DayFile(days.records(DAY))
    file.append([ENTRY])
    write_some, calls = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        return write_some(descriptor, data[:30])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            file.append([ENTRY, ENTRY])
    assert list(days.entries(DAY)) == [ENTRY]
    file.append([ENTRY])
    file.close()
    assert list(days.entries(DAY)) == [ENTRY, ENTRY]


# Days that are over


def test_a_closed_day_keeps_its_sums_and_nothing_else(days: Days) -> None:
    write(days.records(DAY), ENTRY, ENTRY)
    before = days.usage()
    days.close(DAY)
    assert [path.name for path in days.directory.iterdir()] == ["2026-11-25.totals.json"]
    assert days.usage() == before
    days.close(DAY)
    assert days.usage() == before


def test_records_that_a_crash_left_beside_their_sums_do_not_count_twice(days: Days) -> None:
    write(days.records(DAY), ENTRY)
    records = days.records(DAY).read_bytes()
    days.close(DAY)
    days.records(DAY).write_bytes(records)
    assert days.usage() == {"acme": SUM}
    days.close(DAY)
    assert not days.records(DAY).exists()
    assert days.usage() == {"acme": SUM}


def test_sums_that_a_crash_left_half_written_are_made_again(days: Days) -> None:
    write(days.records(DAY), ENTRY)
    (days.directory / "2026-11-25.totals.partial").write_text('{"acme')
    assert days.usage() == {"acme": SUM}
    days.close(DAY)
    assert days.usage() == {"acme": SUM}


def test_usage_counts_from_a_day_on(days: Days) -> None:
    for number in range(3):
        write(days.records(DAY + timedelta(days=number)), *[ENTRY] * (number + 1))
    days.close(DAY)
    requests = [
        days.usage(DAY + timedelta(days=n)).get("acme", Totals()).requests for n in range(4)
    ]
    assert requests == [6, 5, 3, 0]


@pytest.mark.parametrize(
    ("records", "closed", "today", "expected"),
    [
        ([], [], DAY, DAY),
        ([DAY], [], DAY, DAY),
        ([DAY], [], NEXT, NEXT),
        ([NEXT], [], DAY, NEXT),  # the clock was put back
        ([], [DAY], DAY, NEXT),
        ([DAY], [DAY], DAY, NEXT),
    ],
)
def test_a_new_record_never_belongs_to_a_closed_day(
    days: Days, records: list[date], closed: list[date], today: date, expected: date
) -> None:
    for day in closed:
        write(days.records(day), ENTRY)
        days.close(day)
    for day in records:
        write(days.records(day), ENTRY)
    assert days.first_open(today) == expected


def test_other_files_in_the_directory_are_not_read(days: Days) -> None:
    for name in ("lock", "notes.jsonl", "2026-13-01.jsonl", "2026-11-25.txt"):
        (days.directory / name).write_text("x")
    assert days.all() == []


def test_damaged_sums_are_named_with_what_to_do(days: Days) -> None:
    (days.directory / "2026-11-25.totals.json").write_text('{"acme": {"requests": -1}}')
    with pytest.raises(ConfigurationError, match=r"totals\.json: cannot be read; restore it, or"):
        days.usage()


def test_a_directory_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="/no/such: no ledger can be read here: No such"):
        Days(Path("/no/such")).usage()
