"""Tokens that read as text by themselves, out of any checkpoint's vocabulary.

Knows tokenizers; knows nothing of what the tokens are for.
"""

from __future__ import annotations

from collections.abc import Iterator

from dgemma.chat import ChatTokenizer
from dgemma.errors import ConfigurationError

ENOUGH = 512
_LOOKED_AT = 4096  # of a large vocabulary, evenly; to look at one takes some microseconds


def words(tokenizer: ChatTokenizer, avoided: frozenset[int]) -> list[int]:
    """Ids of tokens of letters and digits, without those to be `avoided`.

    Raises ConfigurationError where there are none.
    """
    found = list(_readable(tokenizer, avoided))
    if not found:
        raise ConfigurationError(
            "tokenizer.json: no token reads as text by itself; point DGEMMA_CHECKPOINT at another"
        )
    return found[:: max(1, len(found) // ENOUGH)]


def _readable(tokenizer: ChatTokenizer, avoided: frozenset[int]) -> Iterator[int]:
    size = tokenizer.vocab_size
    for token_id in range(0, size, max(1, size // _LOOKED_AT)):
        text = tokenizer.decode([token_id])
        if text.isascii() and text.strip(" ").isalnum() and token_id not in avoided:
            yield token_id
