"""A few words that one process leaves for another, which also sees whether they are old.

Knows symbolic links and the clock that processes of a machine share; knows nothing of what is said.
A link's target is kept where its name is, so that a few words need no room on a full disk.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STATUS = "status"  # the supervisor's; in the directory that the supervised are told of
FRONT = "front"  # the front's
STARTS = "starts"  # how often the supervisor has started each part: triton=2 front=1


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
    written.unlink(missing_ok=True)
    written.symlink_to(f"{time.monotonic():.3f} {words}")
    os.replace(written, path)


def read(path: Path) -> Sign | None:
    """The latest; None where there is none."""
    try:
        at, _, words = os.readlink(path).partition(" ")
        return Sign(words, float(at))
    except (OSError, ValueError):
        return None
