from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.front.parts import Kind, Splitter

END = "(the end of it)"
PLAIN = "Hello <b> <|chan"
THINKING = "<|channel>thought\nIf <a> then b<channel|>So b."
CALLS = 'I call<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|> and<|tool_call>call:g{}<tool_call|>'


def parts(pieces: list[str], calls: bool = True) -> list[tuple[Kind, str]]:
    """Neighbouring parts of one kind joined; the end of a part is a piece of its own."""
    splitter = Splitter(calls)
    found = [part for piece in pieces for part in splitter.feed(piece)] + [*splitter.finish()]
    joined: list[tuple[Kind, str]] = []
    for part in found:
        if part.closed:
            joined.append((part.kind, END))
        elif joined and joined[-1][0] is part.kind and joined[-1][1] != END:
            joined[-1] = (part.kind, joined[-1][1] + part.text)
        else:
            joined.append((part.kind, part.text))
    return joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, [(Kind.CONTENT, PLAIN)]),
        (
            THINKING,
            [(Kind.REASONING, "If <a> then b"), (Kind.REASONING, END), (Kind.CONTENT, "So b.")],
        ),
        (
            CALLS,
            [
                (Kind.CONTENT, "I call"),
                (Kind.CALL, 'call:f{a:<|"|>x<|"|>}'),
                (Kind.CALL, END),
                (Kind.CONTENT, " and"),
                (Kind.CALL, "call:g{}"),
                (Kind.CALL, END),
            ],
        ),
        ("<|channel>thought\n<channel|>", [(Kind.REASONING, END)]),
        ("<|channel>thought\n<channel|>ok", [(Kind.REASONING, END), (Kind.CONTENT, "ok")]),
        ("<|channel>then", [(Kind.REASONING, "then")]),
        ("<|channel>tho<channel|>", [(Kind.REASONING, "tho"), (Kind.REASONING, END)]),
        ('stray <|"|>quote', [(Kind.CONTENT, "stray quote")]),
        (
            "<|channel>thought\nso<|tool_call>call:f{}<tool_call|>",
            [
                (Kind.REASONING, "so"),
                (Kind.REASONING, END),
                (Kind.CALL, "call:f{}"),
                (Kind.CALL, END),
            ],
        ),
    ],
)
def test_tags_divide_a_text_wherever_blocks_end(
    text: str, expected: list[tuple[Kind, str]]
) -> None:
    assert parts([text]) == expected
    assert parts(list(text)) == expected


@given(
    st.lists(st.sampled_from([*"ab<|>", "<|channel>", "<channel|>", "<|tool_call>"]), max_size=8)
)
def test_how_a_text_is_cut_makes_no_difference(pieces: list[str]) -> None:
    assert parts(pieces) == parts(["".join(pieces)])


def test_calls_that_nobody_offered_are_content() -> None:
    assert parts([CALLS], calls=False) == [(Kind.CONTENT, CALLS.replace('<|"|>', ""))]


def test_what_cannot_become_a_tag_is_not_held_back() -> None:
    splitter = Splitter(calls=False)
    assert [part.text for part in splitter.feed("a < b <|")] == ["a < b "]
    assert [part.text for part in splitter.feed("x")] == ["<|x"]
