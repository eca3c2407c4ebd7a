"""Where a model is brought from, as an operator writes it.

Knows spellings; looks at nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dgemma.errors import ConfigurationError

EXPECTED = (
    "expected: hf://ORG/NAME or hf://ORG/NAME@REVISION, or the directory or file:// URL of a mirror"
)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(rf"(?P<repository>{_NAME}/{_NAME})(@(?P<revision>[A-Za-z0-9][\w./-]*))?")


@dataclass(frozen=True)
class Hub:
    """A repository of Hugging Face; without `revision` its main branch."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Mirror:
    """A directory that holds a checkpoint or a model store."""

    directory: Path

    def __str__(self) -> str:
        return str(self.directory)


def parse(text: str) -> Hub | Mirror:
    """ConfigurationError where `text` is neither."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _mirror(text, Path(text).expanduser())
    if scheme == "file":
        url = urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise ConfigurationError(
                f"--source: got {text!r}, which is on host {url.netloc}; mount it, and write "
                "file:///DIRECTORY"
            )
        return _mirror(text, Path(unquote(url.path)))
    if scheme == "hf" and (match := _HUB.fullmatch(rest)):
        return Hub(match["repository"], match["revision"])
    raise ConfigurationError(f"--source: got {text!r}; {EXPECTED}")


def _mirror(text: str, directory: Path) -> Mirror:
    if not directory.is_dir():
        raise ConfigurationError(f"--source: got {text!r}: no such directory; {EXPECTED}")
    return Mirror(directory.resolve())
