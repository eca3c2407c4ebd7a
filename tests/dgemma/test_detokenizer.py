from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dgemma.detokenizer import BYTE_OF, Detokenizer, Piece, Vocabulary
from dgemma.tags import CHANNEL, TAGS, TOOL_CALL
from dgemma_build.demo.vocabulary import BOS, EOS, build_tokenizer, to_ids
from tests.tiny_checkpoint import byte_level_words, byte_spelling, gemma_like


def spaced_words() -> Tokenizer:
    """Words that `decode` joins with spaces, since there is no decoder."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """`▁` is a space, but not at the start of a text."""
    vocab = {"<s>": 0, "▁a": 1, "b": 2, "▁": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, "<s>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


TOKENIZERS = {
    "bytes": build_tokenizer(),
    "byte-level words": byte_level_words(),
    "gemma-like": gemma_like(),
    "spaced words": spaced_words(),
    "sentence pieces": sentence_pieces(),
}
VOCABULARIES = {name: Vocabulary(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def stream(vocabulary: Vocabulary, blocks: list[list[int]]) -> list[Piece]:
    detokenizer = Detokenizer.of(vocabulary)
    pieces = [piece for block in blocks for piece in detokenizer.push(block)]
    return pieces + detokenizer.finish()


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_any_ids_in_any_blocks_read_as_decode_does(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = st.integers(0, tokenizer.get_vocab_size())  # the last one does not exist
    blocks = data.draw(st.lists(st.lists(ids, max_size=12), max_size=5))
    pieces = stream(VOCABULARIES[name], blocks)
    everything = [token_id for block in blocks for token_id in block]
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(everything)
    assert sum(piece.tokens for piece in pieces) == len(everything)


@given(st.binary(max_size=40))
def test_bytes_that_are_not_utf8_read_as_decode_does(raw: bytes) -> None:
    ids = [64 + byte for byte in raw]
    pieces = stream(VOCABULARIES["bytes"], [ids])
    assert "".join(piece.text for piece in pieces) == TOKENIZERS["bytes"].decode(ids)


def test_a_character_is_settled_with_its_last_byte() -> None:
    detokenizer = Detokenizer.of(VOCABULARIES["bytes"])
    ids = to_ids("é€")
    assert [detokenizer.push([i]) for i in ids] == [[], [Piece("é", 2)], [], [], [Piece("€", 3)]]
    assert detokenizer.finish() == []


def test_half_a_character_reads_as_a_replacement_at_the_end() -> None:
    detokenizer = Detokenizer.of(VOCABULARIES["bytes"])
    assert detokenizer.push(to_ids("€")[:2]) == []
    assert detokenizer.finish() == [Piece("\ufffd", 2)]


def test_complete_text_settles_half_a_character_before_it() -> None:
    detokenizer = Detokenizer.of(VOCABULARIES["bytes"])
    assert detokenizer.push([to_ids("€")[0], *to_ids("a")]) == [Piece("\ufffd", 1), Piece("a", 1)]


def test_control_tokens_are_pieces_without_text() -> None:
    detokenizer = Detokenizer.of(VOCABULARIES["bytes"])
    assert detokenizer.push([BOS, *to_ids("a")]) == [Piece("", 1), Piece("a", 1)]
    first, second = to_ids("é")
    assert detokenizer.push([first, EOS, second]) == [Piece("é", 3)]


def test_control_tokens_that_are_to_be_spelled_have_their_name_as_text() -> None:
    tokenizer = TOKENIZERS["bytes"]
    vocabulary = Vocabulary(tokenizer, [*TAGS, "<no such token>"])
    call, channel = (tokenizer.token_to_id(name) for name in (TOOL_CALL, CHANNEL))
    ids = [channel, *to_ids("é"), call, EOS]
    texts = [Piece(CHANNEL, 1), Piece("é", 2), Piece(TOOL_CALL, 1), Piece("", 1)]
    assert stream(vocabulary, [ids]) == texts
    assert stream(vocabulary, [[i] for i in ids]) == texts
    half = stream(vocabulary, [[*to_ids("é")[:1], call]])
    assert half == [Piece("\ufffd", 1), Piece(TOOL_CALL, 1)]


def test_a_run_of_byte_tokens_is_settled_where_it_ends() -> None:
    tokenizer = TOKENIZERS["gemma-like"]
    detokenizer = Detokenizer.of(VOCABULARIES["gemma-like"])
    ids = tokenizer.encode("a😀b", add_special_tokens=False).ids
    assert detokenizer.push(ids[:-1]) == [Piece("a", 1)]
    assert detokenizer.push(ids[-1:]) == [Piece("😀", 4), Piece("b", 1)]


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    assert {character: byte for byte, character in byte_spelling().items()} == BYTE_OF


class CountingTokenizer:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode(self, ids: list[int]) -> str:
        self.decoded += len(ids)
        return str(self.tokenizer.decode(ids))


@pytest.mark.parametrize("name", ["bytes", "gemma-like"])
def test_the_work_is_linear_also_where_nothing_can_be_settled(name: str) -> None:
    counting: Any = CountingTokenizer(TOKENIZERS[name])
    vocabulary = Vocabulary(counting)
    blocks = [[64 + 0x80 + i % 32 for i in range(16)]] * 200
    pieces = stream(vocabulary, blocks)
    before, counting.decoded = counting.decoded, 0
    assert stream(vocabulary, blocks) == pieces
    assert before < 20_000
    assert counting.decoded <= 2 * 200 * 16
