from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dgemma.tenants.days import DayFile, Days
from dgemma.tenants.quota import used_lately
from dgemma.tenants.usage import Entry

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def test_what_was_used_fades_within_a_minute(tmp_path: Path) -> None:
    days = Days(tmp_path)
    file = DayFile(days.records(NOW.date()))
    ages = {"a": 0, "b": 15, "c": 60, "d": 3600, "ahead": -5}
    file.append(
        Entry(NOW - timedelta(seconds=age), name, "stop", 40, 60, 9) for name, age in ages.items()
    )
    file.append([Entry(NOW - timedelta(seconds=30), "a", "length", 0, 10, 9)])
    file.close()
    used = used_lately(days, NOW)
    assert used == pytest.approx({"a": 105.0, "b": 75.0, "c": 0.0, "d": 0.0, "ahead": 100.0})


def test_on_a_new_day_nothing_is_known(tmp_path: Path) -> None:
    assert used_lately(Days(tmp_path), NOW) == {}
