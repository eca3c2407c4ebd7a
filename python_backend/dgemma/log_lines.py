"""Log lines as JSON of one schema, whoever wrote them: we, Triton, or a library that just printed.

Knows the fields and how Triton writes; knows nothing of where lines come from or go to.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
# Level, month and day, time, thread, place in Triton's sources, and what it says.
_TRITON = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ ([\w./-]+:\d+)\] (.*)", re.DOTALL)
_OURS = frozenset(("time", "level", "source", "logger", "message"))


class JsonFormatter(logging.Formatter):
    """A record as one line. Of `extra`, `request_id` is kept."""

    def __init__(self, source: str) -> None:
        """`source` is the process: backend, front or supervisor."""
        super().__init__()
        self.source = source

    def format(self, record: logging.LogRecord) -> str:
        more = {}
        if (request_id := getattr(record, "request_id", None)) is not None:
            more["request_id"] = str(request_id)
        if record.exc_info:
            more["error"] = self.formatException(record.exc_info)
        return _line(
            datetime.fromtimestamp(record.created, UTC),
            record.levelname.lower(),
            self.source,
            record.name,
            record.getMessage(),
            more,
        )


def configure(source: str, level: str, as_json: bool) -> None:
    """Have this process log to stderr, as plain text or as JSON; `source` as in `JsonFormatter`."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter(source) if as_json else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def of_output(line: str, now: datetime, source: str) -> str:
    """A line that a process printed, read at the moment `now`; `source` is the process."""
    return line if is_ours(line) else _line(now, "info", source, "output", line, {})


def of_error(message: str, now: datetime, source: str) -> str:
    """What ends a process."""
    return _line(now, "error", source, "dgemma", message, {})


def of_triton(line: str, now: datetime) -> str:
    """A line that tritonserver's process printed, read at the moment `now`.

    Ours come through it as they are. Triton's own stamps have no year and no zone, and are dropped.
    """
    if match := _TRITON.fullmatch(line):
        level, place, said = match.groups()
        return _line(now, _LEVELS[level], "triton", place, _unquoted(said), {})
    return of_output(line, now, "triton")


def is_ours(line: str) -> bool:
    """Whether a line is JSON of our schema already."""
    if not line.startswith("{"):
        return False
    try:
        fields: dict[str, object] = json.loads(line)
    except ValueError:
        return False
    return fields.keys() >= _OURS


def _line(
    time: datetime, level: str, source: str, logger: str, message: str, more: dict[str, str]
) -> str:
    stamp = time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"time": stamp, "level": level, "source": source, "logger": logger}
    # In ASCII: a process may have been given any encoding to print with.
    return json.dumps({**fields, "message": message, **more})


def _unquoted(said: str) -> str:
    """Triton quotes most of what it says, and escapes line breaks in it."""
    try:
        plain = json.loads(said)
    except ValueError:
        return said
    return plain if isinstance(plain, str) else said
