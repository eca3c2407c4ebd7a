"""Engines that are there and are not to be used, and why.

Knows a suffix of a directory's name and one file in it; knows nothing of what was wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dgemma.errors import ConfigurationError
from dgemma.profiles.layout import ASIDE, REASON

By = Literal["verification", "operator"]


@dataclass(frozen=True)
class Aside:
    """Why an engine is not used. What a verification has set aside, it may take back."""

    by: By
    why: str
    at: str  # UTC

    @classmethod
    def of(cls, by: By, why: str) -> Aside:
        return cls(by, why, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))

    @classmethod
    def read(cls, directory: Path) -> Aside:
        """A file that cannot be read is no reason to use the engine."""
        try:
            return cls(**json.loads((directory / REASON).read_text()))
        except (OSError, ValueError, TypeError):
            return cls("verification", f"{REASON} cannot be read", "an unknown time")

    def __str__(self) -> str:
        return f"set aside by {self.by}, {self.at} UTC: {self.why}"


def aside_of(directory: Path) -> Path:
    """Where `directory` stands while it is set aside."""
    return directory.with_name(directory.name + ASIDE)


def set_aside(directory: Path, aside: Aside, name: Path | None = None) -> Path:
    """Move an engine away from where it is found; `name` is its own, where that is another.

    One that was set aside before is replaced. Raises ConfigurationError where that cannot be
    written.
    """
    away = aside_of(name or directory)
    try:
        _write(directory / REASON, aside)
        if away != directory:
            shutil.rmtree(away, ignore_errors=True)
            directory.rename(away)
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot be set aside: {error}") from None
    return away


def take_back(directory: Path, name: Path) -> None:
    """Give an engine its `name`, under which it is used; ConfigurationError where that fails."""
    try:
        directory.rename(name)
        (name / REASON).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot be taken back: {error}") from None


def _write(path: Path, aside: Aside) -> None:
    temporary = path.with_suffix(".partial")
    with temporary.open("w") as file:
        file.write(json.dumps(asdict(aside), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
