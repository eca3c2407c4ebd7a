"""Lengths that the served model can take.

Knows how prompt and answer share a context; what the context is, a server or the user says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.prompts import CHARACTERS_PER_TOKEN

RESERVED = 48  # tokens of a chat template around a prompt
_KEYS = ("context", "characters")


@dataclass(frozen=True)
class Fit:
    """`context`: tokens of prompt and answer together, None: no limit is known."""

    context: int | None = None
    characters: float = CHARACTERS_PER_TOKEN  # of a token

    def answer(self, tokens: int) -> int:
        """What may be asked for: at most half of the context."""
        return tokens if self.context is None else max(1, min(tokens, self.context // 2))

    def prompt(self, answer: int | None) -> int | None:
        """Tokens that a prompt may have beside such an answer; None: any number."""
        if self.context is None:
            return None
        return max(1, self.context - (answer or self.context // 2) - RESERVED)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse(text: str) -> Fit:
    """`context=1024,characters=1`. Raises InputError."""
    given: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        try:
            given[key.strip()] = float(value)
        except ValueError:
            given[key.strip()] = -1.0
        if key.strip() not in _KEYS or given[key.strip()] <= 0:
            raise InputError(
                f"fit: got {part!r}; allowed: auto, off, or context=TOKENS,characters=NUMBER "
                "(of a token), both above 0"
            )
    context = given.get("context")
    return Fit(
        None if context is None else int(context), given.get("characters", CHARACTERS_PER_TOKEN)
    )
