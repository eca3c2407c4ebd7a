"""Which revision of a model store is served, and which one was before it.

Knows one small file and how it is replaced; knows nothing of what a revision holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dgemma.checkpoint_manifest import is_name
from dgemma.errors import ConfigurationError
from dgemma.profiles.locks import building

FILE_NAME = "current"
CHECKPOINTS = "checkpoint"  # the directory of all revisions of the checkpoint


@dataclass(frozen=True)
class Choice:
    """`checkpoint` is a revision's name, `profile` an id; None leaves it to the service."""

    checkpoint: str | None = None
    profile: str | None = None

    def __str__(self) -> str:
        profile = "the preferred profile" if self.profile is None else f"profile {self.profile}"
        return f"checkpoint {self.checkpoint or 'as DGEMMA_CHECKPOINT says'}, {profile}"


@dataclass(frozen=True)
class Pointer:
    """What is served from a store at the next start."""

    current: Choice
    previous: Choice | None = None

    @classmethod
    def read(cls, root: Path) -> Pointer | None:
        """None where nothing was ever chosen; ConfigurationError where the file is damaged."""
        path = root / FILE_NAME
        try:
            data = json.loads(path.read_text())
            previous = data["previous"]
            return cls(_choice(data["current"]), None if previous is None else _choice(previous))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path}: cannot be read: {error!r}; remove it, and choose again with "
                "`dgemma revisions use REVISION`"
            ) from None

    def checkpoint(self, root: Path) -> Path | None:
        """Where the current checkpoint is; ConfigurationError where it is gone."""
        name = self.current.checkpoint
        found = None if name is None else root / CHECKPOINTS / name
        if found is not None and not found.is_dir():
            raise ConfigurationError(
                f"{root / FILE_NAME}: {found} is gone; choose another revision with `dgemma "
                "revisions use REVISION`, or bring this one again with `dgemma download-to-cache`"
            )
        return found

    def moved(self, to: Choice) -> Pointer:
        return self if to == self.current else Pointer(to, self.current)

    def back(self, root: Path) -> Pointer:
        """The other way round; ConfigurationError where there is nothing to go back to."""
        if self.previous is None:
            raise ConfigurationError(f"{root / FILE_NAME}: there is no previous revision")
        return Pointer(self.previous, self.current)

    def write(self, root: Path) -> None:
        """A reader finds the one before or this one, whatever happens."""
        path = root / FILE_NAME
        temporary = root / f"{FILE_NAME}.partial"
        try:
            with temporary.open("w") as file:
                file.write(json.dumps(asdict(self), indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be written: {error}") from None


@dataclass(frozen=True)
class Current:
    """What a service takes from a store; None where neither it nor the operator says."""

    checkpoint: Path | None
    profile: str | None


def current_of(root: Path, checkpoint: Path | None = None) -> Current:
    """What the store's pointer says; nothing where the operator has named a `checkpoint`.

    Raises ConfigurationError where the pointer is damaged, or its checkpoint is gone.
    """
    pointer = None if checkpoint is not None else Pointer.read(root)
    if pointer is None:
        return Current(checkpoint, None)
    return Current(pointer.checkpoint(root), pointer.current.profile)


@contextmanager
def changing(root: Path) -> Iterator[Pointer | None]:
    """The pointer as it is, which nobody else changes within the block."""
    with building(root / FILE_NAME):
        yield Pointer.read(root)


def _choice(data: dict[str, str | None]) -> Choice:
    choice = Choice(**data)
    for value in asdict(choice).values():
        if value is not None and not is_name(value):
            raise ValueError(f"{value!r} is no revision")
    return choice
