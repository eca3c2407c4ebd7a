from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dgemma.chat import ChatTokenizer
from dgemma_build.demo.vocabulary import (
    BOS,
    CONTROL,
    EOS,
    FIRST_BYTE,
    MODEL,
    PAD,
    TURN_END,
    TURN_START,
    USER,
    VOCAB_SIZE,
    build_tokenizer,
    chat_prompt,
    save_tokenizer,
    to_ids,
)

TOKENIZER = build_tokenizer()


def test_ids_are_controls_then_spares_then_roles_then_bytes() -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert sorted(vocabulary.values()) == list(range(VOCAB_SIZE))
    assert [TOKENIZER.id_to_token(i) for i in range(len(CONTROL))] == CONTROL
    assert (PAD, EOS, BOS) == (0, 1, 2)
    assert (TOKENIZER.id_to_token(USER), TOKENIZER.id_to_token(MODEL)) == ("user\n", "model\n")
    assert FIRST_BYTE == MODEL + 1


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_are_one_id_each(token: str) -> None:
    assert TOKENIZER.encode(token, add_special_tokens=False).ids == [CONTROL.index(token)]


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=50))
def test_text_is_its_bytes_and_comes_back(text: str) -> None:
    ids = to_ids(text)
    assert [i - FIRST_BYTE for i in ids] == list(text.encode())
    assert TOKENIZER.decode(ids) == text
    if not any(mark in text for mark in ("<", "user\n", "model\n")):
        assert TOKENIZER.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize("byte", [0, 9, 10, 32, 127, 128, 173, 255])
def test_every_byte_has_a_token(byte: int) -> None:
    assert len(TOKENIZER.id_to_token(FIRST_BYTE + byte)) == 1


@pytest.mark.parametrize("user", ["hello", "12.\n456", "é € 😀", "", "count from 07"])
def test_the_shipped_chat_template_renders_exactly_the_training_prompt(
    demo_checkpoint: Path, user: str
) -> None:
    shipped = ChatTokenizer.from_checkpoint(demo_checkpoint)
    text = shipped.render([{"role": "user", "content": user}])
    assert shipped.encode(text) == chat_prompt(user)


def test_a_prompt_is_one_turn_of_the_user_and_the_beginning_of_the_answer() -> None:
    ids = chat_prompt("x")
    assert ids[:3] == [BOS, TURN_START, USER]
    assert ids[3:5] == [*to_ids("x"), TURN_END]
    assert ids[-2:] == [TURN_START, MODEL]


def test_the_shipped_tokenizer_is_the_one_built_here(demo_checkpoint: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    built = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    shipped = Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json"))
    assert built.to_str() == shipped.to_str() == TOKENIZER.to_str()
