"""Lines of every origin become JSON of one schema."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dgemma.log_lines import JsonFormatter, is_ours, of_triton

NOW = datetime(2026, 3, 4, 6, 7, 8, 901234, timezone(timedelta(hours=1)))


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("dgemma.x").makeRecord(
        "dgemma.x", logging.WARNING, "x.py", 1, message, arguments, None, extra=extra
    )
    made.created = datetime(2026, 3, 4, 5, 7, 8, 250000, UTC).timestamp()
    return made


def test_our_records() -> None:
    line = JsonFormatter("backend").format(record("request %s: gone ×", "r#1", request_id="r#1"))
    assert "\n" not in line and line.isascii()
    assert json.loads(line) == {
        "time": "2026-03-04T05:07:08.250Z",
        "level": "warning",
        "source": "backend",
        "logger": "dgemma.x",
        "message": "request r#1: gone ×",
        "request_id": "r#1",
    }


def test_an_error_keeps_its_traceback_in_the_same_line() -> None:
    made = record("failed")
    try:
        raise ValueError("of a reason\nin two lines")
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    line = JsonFormatter("backend").format(made)
    assert "\n" not in line
    assert "ValueError: of a reason\nin two lines" in json.loads(line)["error"]


@pytest.mark.parametrize(
    ("letter", "level"),
    [("I", "info"), ("W", "warning"), ("E", "error"), ("F", "critical")],
)
def test_triton_s_levels(letter: str, level: str) -> None:
    line = of_triton(f'{letter}0304 05:07:08.1234 77 server.cc:674] "\\n+--\\n| x"', NOW)
    assert json.loads(line) == {
        "time": "2026-03-04T05:07:08.901Z",
        "level": level,
        "source": "triton",
        "logger": "server.cc:674",
        "message": "\n+--\n| x",
    }


def test_what_triton_does_not_quote() -> None:
    line = of_triton("I0304 05:07:08.123456 7 grpc_server.cc:9] Started GRPC at 1:2", NOW)
    assert json.loads(line)["message"] == "Started GRPC at 1:2"
    line = of_triton("I0304 05:07:08.123456 7 grpc_server.cc:9] 12", NOW)
    assert json.loads(line)["message"] == "12"


def test_what_anybody_prints() -> None:
    for printed in ("Segmentation fault", "", '{"level": "info"}', "{broken", "[1]"):
        fields = json.loads(of_triton(printed, NOW))
        assert (fields["source"], fields["level"]) == ("triton", "info")
        assert fields["message"] == printed


def test_ours_come_through_triton_as_they_are() -> None:
    line = JsonFormatter("backend").format(record("one"))
    assert is_ours(line)
    assert of_triton(line, NOW) == line
