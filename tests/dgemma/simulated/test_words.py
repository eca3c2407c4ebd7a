from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from dgemma.chat import ChatTokenizer
from dgemma.errors import ConfigurationError
from dgemma.simulated.words import ENOUGH, words
from tests.tiny_checkpoint import byte_tokenizer


def of(vocabulary: dict[str, int]) -> ChatTokenizer:
    return ChatTokenizer(Tokenizer(models.WordLevel(vocabulary, unk_token="?")))


def test_of_bytes_they_are_letters_and_digits() -> None:
    tokenizer = byte_tokenizer()
    found = words(tokenizer, frozenset())
    assert sorted(tokenizer.decode([token]) for token in found) == sorted(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    )


def test_a_large_vocabulary_is_not_read_whole() -> None:
    many = {f"w{number}": number for number in range(30_000)}
    found = words(of(many), frozenset())
    assert ENOUGH <= len(found) <= 2 * ENOUGH
    assert max(found) > 29_000


def test_control_tokens_can_be_avoided() -> None:
    assert words(of({"a": 0, "b": 1, "?": 2}), frozenset({1})) == [0]


def test_without_words_there_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no token reads as text by itself"):
        words(of({"?": 0, "…": 1}), frozenset())
