"""Prompts by class: those that are shipped, or the user's own.

Knows files, lengths and how to make a prompt that no other begins like; knows nothing of who asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dgemma_loadtest.errors import InputError

SHIPPED = Path(__file__).with_name("prompts")
RANDOM = "random"  # characters by chance: the worst case, and nothing that anybody asks
CHARACTERS_PER_TOKEN = 4.0
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz      0123456789,.;:-"))
_RANDOM_TOKENS = 256


class Entry(BaseModel):
    """A prompt in a file. `exact`: it means nothing with anything before or behind it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    text: Annotated[str, Field(min_length=1)]
    template: str | None = None  # an answer with gaps, such as `def f(x):<|gap:40|>`
    exact: bool = False


@dataclass(frozen=True)
class Prompt:
    """What is asked."""

    prompt_class: str
    name: str
    text: str
    template: str | None = None


Library = Mapping[str, Sequence[Entry]]
_ENTRIES: TypeAdapter[list[Entry]] = TypeAdapter(list[Entry])


def library(own: Path | None = None) -> Library:
    """Shipped prompts; a directory of `CLASS.yaml`, or one such file, adds or replaces classes.

    Raises InputError.
    """
    files = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    if own is not None:
        found = sorted(own.glob("*.yaml")) if own.is_dir() else [own]
        if not found or not all(path.is_file() for path in found):
            raise InputError(
                f"prompts: {own}: must be a file CLASS.yaml or a directory of them, each a list of "
                "name and text"
            )
        files |= {path.stem: path for path in found}
    return {name: _entries(path) for name, path in files.items()}


def draw(
    classes: Mapping[str, float],
    entries: Library,
    rng: np.random.Generator,
    *,
    tokens: int | None = None,
    most_tokens: int | None = None,
    characters_per_token: float = CHARACTERS_PER_TOKEN,
    mark: str | None = None,
    infill: bool = False,
) -> Prompt:
    """A prompt of one of the classes, by their shares.

    `tokens` is the length it is cut or joined to, `most_tokens` what it must not exceed; both are
    reckoned with `characters_per_token`. `mark` is put first, unless the prompt is exact. `infill`
    takes prompts with a template.
    """
    names = list(classes)
    shares = np.array([classes[name] for name in names])
    chosen = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    limit = None if most_tokens is None else int(most_tokens * characters_per_token)
    if chosen == RANDOM:
        length = int((tokens or _RANDOM_TOKENS) * characters_per_token)
        text = "".join(rng.choice(_LETTERS, min(length, limit or length)))
        return Prompt(RANDOM, RANDOM, text)
    known = [entry for entry in entries[chosen] if entry.template or not infill]
    first = int(rng.integers(len(known)))
    entry = known[first]
    if entry.exact:
        return Prompt(chosen, entry.name, entry.text, entry.template)
    text = entry.text if mark is None else f"{mark}\n{entry.text}"
    if tokens is not None:
        text = _joined(text, known, first, int(tokens * characters_per_token))
    return Prompt(chosen, entry.name, text if limit is None else text[:limit], entry.template)


def check(classes: Mapping[str, float], entries: Library, task: str) -> None:
    """Raises InputError where a class is not there, or has nothing to fill in."""
    for name in classes:
        if name == RANDOM and task == "generate":
            continue
        if name not in entries:
            known = ", ".join(sorted([*entries, RANDOM]))
            raise InputError(f"prompts: there is no class {name!r}; known: {known}")
        if task == "infill" and not any(entry.template for entry in entries[name]):
            raise InputError(f"prompts: no prompt of class {name!r} has a template to fill in")


def _joined(text: str, known: Sequence[Entry], first: int, length: int) -> str:
    """The text, followed by those behind it in its class, over and over, as far as it goes."""
    behind = itertools.cycle([*known[first + 1 :], *known[: first + 1]])
    while len(text) < length:
        text = f"{text}\n\n{next(behind).text}"
    return text[:length]


def _entries(path: Path) -> list[Entry]:
    try:
        return _ENTRIES.validate_python(yaml.load(path.read_text(encoding="utf-8"), LOADER))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"prompts: {path}: cannot be read as YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(
            f"prompts: {path}: {where}: {first['msg']}; it must be a list of name and text"
        ) from None
