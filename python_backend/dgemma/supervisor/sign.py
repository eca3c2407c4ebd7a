"""A few words that one process leaves in a file for another, which also sees whether they are old.

Knows files and the clock that processes of a machine share; knows nothing of what is said.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

STATUS = "status.json"  # the supervisor's; in the directory that the supervised are told of
FRONT = "front.json"  # the front's


@dataclass(frozen=True)
class Sign:
    """What `give` left: words, empty where all is well, and the moment."""

    words: str
    at: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.at


def give(path: Path, words: str = "") -> None:
    """Leave the words, with the time; a reader finds either these or those before."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps({"words": words, "at": time.monotonic()}))
    os.replace(written, path)


def read(path: Path) -> Sign | None:
    """The latest; None where there is none."""
    try:
        found = json.loads(path.read_text())
        return Sign(str(found["words"]), float(found["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
