"""Token ids to text while they arrive, in pieces that no later token can change.

Knows which tokens have no text of their own (control tokens, and bytes of a character that is not
complete); knows nothing of stop strings. The pieces of a sequence, joined, are the tokenizer's
`decode` of it with special tokens skipped, but for those that are to be spelled; the work is linear
in its length.
"""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer, decoders

from dgemma.errors import ConfigurationError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Piece(NamedTuple):
    """Settled text and how many tokens, following those of the piece before, it is made of.

    Control tokens give empty text. A byte-level token whose bytes belong to two pieces counts for
    the first.
    """

    text: str
    tokens: int


class Vocabulary:
    """The text of single tokens, as they read behind other text; looked up once each.

    Control tokens of the names in `spelled` have their name as text; the other ones have none.
    """

    def __init__(self, tokenizer: Tokenizer, spelled: Iterable[str] = ()) -> None:
        if isinstance(tokenizer.decoder, decoders.CTC | decoders.BPEDecoder):
            raise ConfigurationError(
                f"tokenizer.json: decoder {type(tokenizer.decoder).__name__} cannot be streamed; "
                "supported: ByteLevel, Metaspace, WordPiece and byte-fallback sequences"
            )
        self.tokenizer = tokenizer
        self.byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        found = {tokenizer.token_to_id(name): name for name in spelled}
        self._spelled = {token_id: name for token_id, name in found.items() if token_id is not None}
        self._texts: dict[int, str | None] = dict(self._spelled)
        self.plain: dict[int, Piece] = {}  # of the tokens looked up that have text of their own
        # Some decoders write a space between tokens, or drop the first one's: any token with text
        # of its own serves to see how the others read behind it.
        ids = range(tokenizer.get_vocab_size())
        self._before = next((i for i in ids if self._stands_alone(i)), None)

    def text(self, token_id: int) -> str | None:
        """The token's text, "" for a control token; None where it depends on its neighbours."""
        try:
            return self._texts[token_id]
        except KeyError:
            text: str | None = self.join([token_id], first=False)
            if text and (REPLACEMENT in text or self._is_byte(token_id)):
                text = None
            if text:
                self.plain[token_id] = Piece(text, 1)
            return self._texts.setdefault(token_id, text)

    def first(self, token_id: int) -> str:
        """The text of a token that begins a text, of those that have text of their own."""
        return self._spelled.get(token_id) or self.join([token_id], first=True)

    def join(self, token_ids: list[int], first: bool) -> str:
        """Text of neighbouring tokens, at the start of a text or behind some."""
        if first or self._before is None:
            return self.tokenizer.decode(token_ids)
        behind = self.tokenizer.decode([self._before, *token_ids])
        return behind[len(self.tokenizer.decode([self._before])) :]

    def raw_bytes(self, token_id: int) -> bytes:
        """Bytes of a token of a byte-level tokenizer."""
        name = self.tokenizer.id_to_token(token_id) or ""
        try:
            return bytes(BYTE_OF[character] for character in name)
        except KeyError:  # an added token is written as it is
            return name.encode()

    def _stands_alone(self, token_id: int) -> bool:
        text = self.tokenizer.decode([token_id])
        return bool(text.strip()) and REPLACEMENT not in text and not self._is_byte(token_id)

    def _is_byte(self, token_id: int) -> bool:
        return bool(BYTE_TOKEN.fullmatch(self.tokenizer.id_to_token(token_id) or ""))


class Detokenizer(ABC):
    """The pieces of one sequence. Tokens whose text is not settled are held until it is."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._held = 0  # tokens
        self._begun = False  # whether there was any text

    @staticmethod
    def of(vocabulary: Vocabulary) -> Detokenizer:
        return (ByteLevel if vocabulary.byte_level else ByteFallback)(vocabulary)

    def push(self, token_ids: Iterable[int]) -> list[Piece]:
        """The pieces that these tokens settle."""
        pieces: list[Piece] = []
        vocabulary, pending = self._vocabulary, self._pending
        plain_of, text_of = vocabulary.plain.get, vocabulary.text
        for token_id in token_ids:
            plain = plain_of(token_id)
            if plain is not None and self._begun and not pending:  # as nearly all are
                pieces.append(plain)
                continue
            text = text_of(token_id)
            if text is None:
                self._held += 1
                if settled := self._fragment(token_id):
                    pieces.append(self._piece(settled))
                pending = self._pending
            elif text:
                if pending:
                    pieces.append(self._piece(self._settle()))
                    pending = False
                first = self._vocabulary.first
                pieces.append(Piece(text if self._begun else first(token_id), 1))
                self._begun = True
            elif self._held:
                self._held += 1  # in the midst of a character; it is skipped there
            else:
                pieces.append(Piece("", 1))
        return pieces

    def finish(self) -> list[Piece]:
        """What is held, as it reads when nothing follows."""
        return [self._piece(self._settle())] if self._pending else []

    def _piece(self, text: str) -> Piece:
        tokens, self._held, self._begun = self._held, 0, True
        return Piece(text, tokens)

    @property
    @abstractmethod
    def _pending(self) -> bool:
        """Whether there are fragments that are not settled."""

    @abstractmethod
    def _fragment(self, token_id: int) -> str:
        """Take a token without text of its own; the text that it settles."""

    @abstractmethod
    def _settle(self) -> str:
        """The text of the fragments so far, which nothing continues."""


class ByteLevel(Detokenizer):
    """Tokens are strings of bytes; whatever is not UTF-8 reads as U+FFFD."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def _pending(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _fragment(self, token_id: int) -> str:
        return self._utf8.decode(self._vocabulary.raw_bytes(token_id))

    def _settle(self) -> str:
        return self._utf8.decode(b"", final=True)


class ByteFallback(Detokenizer):
    """A character outside the vocabulary is a run of byte tokens.

    A run with one invalid byte reads as U+FFFD throughout, so it is settled where it ends.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._run: list[int] = []

    @property
    def _pending(self) -> bool:
        return bool(self._run)

    def _fragment(self, token_id: int) -> str:
        self._run.append(token_id)
        return ""

    def _settle(self) -> str:
        text = self._vocabulary.join(self._run, first=not self._begun)
        self._run = []
        return text


def _byte_alphabet() -> dict[str, int]:
    """Byte-level tokenizers spell bytes that do not print as characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
