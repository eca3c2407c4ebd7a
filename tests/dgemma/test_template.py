from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.errors import InvalidRequest
from dgemma.template import FREE, parse_template, pin
from dgemma_build.demo.vocabulary import EOS, TURN_END, to_ids
from tests.tiny_checkpoint import byte_tokenizer

ENCODE = byte_tokenizer().encode


def parse(text: str, max_tokens: int = 100) -> tuple[int, ...]:
    return parse_template(text, ENCODE, "max_new_tokens", max_tokens)


def test_text_is_pinned_and_gaps_are_free() -> None:
    expected = (*to_ids("a = "), *[FREE] * 3, *to_ids(";\n"), FREE)
    assert parse("a = <|gap:3|>;\n<|gap:1|>") == expected


def test_control_tokens_in_the_text_are_recognised() -> None:
    assert parse("x<turn|>") == (*to_ids("x"), TURN_END)


def test_a_template_may_be_all_text_or_all_gap() -> None:
    assert parse("done") == tuple(to_ids("done"))
    assert parse("<|gap:100|>") == (FREE,) * 100


def test_pieces_of_text_are_tokenised_separately() -> None:
    calls: list[str] = []

    def encode(text: str) -> list[int]:
        calls.append(text)
        return [9] * len(text)

    assert parse_template("ab<|gap:2|>c", encode, "max_new_tokens", 9) == (9, 9, FREE, FREE, 9)
    assert calls == ["ab", "c"]


@given(
    st.lists(
        st.one_of(st.integers(1, 9), st.text("ab é\n<|>", max_size=5)), min_size=1, max_size=8
    ).filter(lambda parts: any(parts))
)
def test_positions_are_those_of_the_parts(parts: list[int | str]) -> None:
    text = "".join(f"<|gap:{part}|>" if isinstance(part, int) else part for part in parts)
    expected: list[int] = []
    for part in parts:
        expected += [FREE] * part if isinstance(part, int) else to_ids(part)
    assert parse(text, max_tokens=1000) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a<|gap:0|>b", "gap of 0; allowed: 1 to 100"),
        ("<|gap:101|>", "gap of 101; allowed: 1 to 100"),
        ("<|gap:|>", "malformed gap"),
        ("<|gap|>", "malformed gap"),
        ("<|gap:-1|>", "malformed gap"),
        ("<|gap:x|>", "malformed gap"),
        ("<|gap: 3|>", "malformed gap"),
        ("<|gap:3", "malformed gap"),
        ("<|gap:٣|>", "malformed gap"),
        ("<|gap:99999999999999999999|>", "malformed gap"),
        ("a" * 101, "longer than max_new_tokens, which is 100 tokens"),
        ("<|gap:60|><|gap:60|>", "longer than max_new_tokens"),
    ],
)
def test_a_bad_template_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match="^canvas_template: .*" + message) as caught:
        parse(text)
    assert caught.value.field == "canvas_template"


def test_many_large_gaps_are_refused_before_they_are_laid_out() -> None:
    with pytest.raises(InvalidRequest, match="longer than max_new_tokens"):
        parse("<|gap:100000|>" * 100_000, max_tokens=100_000)


@pytest.mark.parametrize(
    ("length", "max_new_tokens", "expected"),
    [(3, 3, 8), (8, 8, 8), (9, 9, 16), (8, 9, 16), (3, 20, 24)],
)
def test_positions_behind_the_template_are_eos(
    length: int, max_new_tokens: int, expected: int
) -> None:
    template = (FREE,) * length
    pinned = pin(template, EOS, canvas_length=8, max_new_tokens=max_new_tokens)
    assert pinned == template + (EOS,) * (expected - length)
