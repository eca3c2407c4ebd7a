from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dgemma.answer import Answer, Delta, annotate
from dgemma.chat import ChatTokenizer
from dgemma.sampling import Sampling
from dgemma_build.demo.vocabulary import BOS, EOS, PAD, TURN_END, to_ids
from tests.tiny_checkpoint import byte_level_words, byte_tokenizer, gemma_like

TOKENIZER = byte_tokenizer()
GEMMA_LIKE = ChatTokenizer(gemma_like())
BYTE_LEVEL = ChatTokenizer(byte_level_words())
STOP_IDS = frozenset({EOS, TURN_END})
SAMPLING = Sampling(
    max_new_tokens=1000,
    max_denoising_steps=48,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    stability_threshold=1,
    confidence_threshold=0.005,
    seed=0,
    stop=(),
    ignore_eos=False,
    return_token_ids=True,
)


def answer(
    *stop: str, max_new_tokens: int = 1000, ignore_eos: bool = False, of: ChatTokenizer = TOKENIZER
) -> Answer:
    sampling = replace(SAMPLING, stop=stop, max_new_tokens=max_new_tokens, ignore_eos=ignore_eos)
    return Answer(of, sampling, STOP_IDS)


def run(answer: Answer, blocks: list[list[int]]) -> list[Delta]:
    """Deltas up to the end of the answer, or of the blocks."""
    deltas = []
    for block in blocks:
        deltas.append(answer.push(block))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Blocks of these sizes, over and over until the ids are used up."""
    blocks: list[list[int]] = []
    at = 0
    while at < len(ids):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(ids[at : at + size])
        at += size
    return blocks


# Ends


def test_a_stop_id_ends_the_answer_and_is_no_part_of_it() -> None:
    ended = answer()
    assert ended.push([*to_ids("ab"), TURN_END, *to_ids("c"), EOS]) == Delta(
        "ab", tuple(to_ids("ab")), "stop"
    )
    assert ended.completion_tokens == 2


def test_an_answer_goes_on_until_something_ends_it() -> None:
    going = answer()
    assert going.push(to_ids("ab")) == Delta("ab", tuple(to_ids("ab")), None)
    assert going.push([EOS]) == Delta("", (), "stop")


def test_an_answer_may_be_empty() -> None:
    assert answer().push([EOS, EOS]) == Delta("", (), "stop")


def test_max_new_tokens_truncates() -> None:
    short = answer(max_new_tokens=5)
    assert short.push(to_ids("abc")).finish_reason is None
    assert short.push(to_ids("def")) == Delta("de", tuple(to_ids("de")), "length")
    assert short.completion_tokens == 5


def test_exactly_max_new_tokens_is_the_end() -> None:
    assert answer(max_new_tokens=3).push(to_ids("abc")).finish_reason == "length"


@pytest.mark.parametrize(("position", "reason"), [(2, "stop"), (3, "length"), (4, "length")])
def test_a_stop_id_counts_within_max_new_tokens_only(position: int, reason: str) -> None:
    block = to_ids("abcdef")
    block[position] = EOS
    delta = answer(max_new_tokens=3).push(block)
    assert (delta.text, delta.finish_reason) == ("abc"[:position], reason)


def test_ignored_stop_ids_are_tokens_without_text() -> None:
    deltas = run(answer(ignore_eos=True, max_new_tokens=5), [[*to_ids("a"), EOS], to_ids("bcd")])
    assert (text_of(deltas), deltas[-1].finish_reason) == ("abcd", "length")
    assert ids_of(deltas) == [*to_ids("a"), EOS, *to_ids("bcd")]


def test_half_a_character_waits_for_the_next_block() -> None:
    first, second = to_ids("é")
    deltas = run(answer(), [[*to_ids("a"), first], [second, *to_ids("b")], [EOS]])
    assert [delta.text for delta in deltas] == ["a", "éb", ""]
    assert [delta.token_ids for delta in deltas] == [
        tuple(to_ids("a")),
        (first, second, *to_ids("b")),
        (),
    ]


def test_half_a_character_is_sent_at_the_end() -> None:
    assert answer().push([to_ids("é")[0], EOS]) == Delta("\ufffd", (to_ids("é")[0],), "stop")


def test_nothing_comes_after_the_end() -> None:
    ended = answer()
    ended.push([EOS])
    with pytest.raises(RuntimeError, match="ended"):
        ended.push(to_ids("a"))


# Stop strings


def test_a_stop_string_ends_the_answer_before_it() -> None:
    stopped = answer("\n\n")
    assert stopped.push(to_ids("ab\n\ncd")) == Delta("ab", tuple(to_ids("ab")), "stop")
    assert stopped.completion_tokens == 2


def test_a_stop_string_across_blocks_is_never_sent() -> None:
    deltas = run(answer("END"), cut(to_ids("xENxEND!"), [3]))
    assert [delta.text for delta in deltas] == ["x", "ENx", ""]
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert ids_of(deltas) == to_ids("xENx")


def test_held_text_is_sent_when_the_answer_ends_otherwise() -> None:
    assert text_of(run(answer("END"), [to_ids("xEN"), [EOS]])) == "xEN"
    assert text_of(run(answer("END", max_new_tokens=3), [to_ids("xE"), to_ids("ND")])) == "xEN"


def test_a_stop_string_behind_a_stop_id_does_not_count() -> None:
    assert answer("b").push([*to_ids("a"), EOS, *to_ids("b")]).text == "a"


def test_the_stop_string_that_begins_first_wins() -> None:
    assert answer("cd", "bcde").push(to_ids("abcdef")).text == "a"


def test_a_stop_string_waits_for_one_that_began_before_it() -> None:
    deltas = run(answer("bc", "abcd"), [to_ids("xabc"), to_ids("d")])
    assert [delta.text for delta in deltas] == ["x", ""]
    deltas = run(answer("bc", "abcd"), [to_ids("xabc"), to_ids("x")])
    assert [delta.text for delta in deltas] == ["x", "a"]
    assert ids_of(deltas) == to_ids("xa")


def test_tokens_of_a_stop_string_are_not_part_of_the_answer_but_a_shared_one_is() -> None:
    (word,) = (i for i in range(260, 271) if GEMMA_LIKE.decode([i]) == " café")
    delta = answer("fé", of=GEMMA_LIKE).push([word, EOS])
    assert (delta.text, delta.token_ids) == (" ca", (word,))


def test_control_tokens_before_a_stop_string_are_not_part_of_the_answer() -> None:
    ids = [BOS, *to_ids("a"), PAD, *to_ids("b")]
    delta = answer("b").push(ids)
    assert (delta.text, delta.token_ids) == ("a", (BOS, *to_ids("a")))


# Any text, blocks and stop strings

ALPHABET = "ab\né€😀"
TEXT = st.text(ALPHABET, max_size=40)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> int | None:
    return min((text.find(stop) for stop in stops if stop in text), default=None)


@given(TEXT, STOPS, SIZES)
def test_text_in_blocks_is_the_whole_text_up_to_its_first_stop_string(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    whole = answer(*stops)
    deltas = run(whole, cut([*to_ids(text), TURN_END, *to_ids("ab")], sizes))
    expected = text[: first_stop(text, stops)]
    assert text_of(deltas) == expected
    assert ids_of(deltas) == to_ids(expected)
    assert deltas[-1].finish_reason == "stop"
    assert whole.completion_tokens == len(to_ids(expected))


@given(TEXT, STOPS, SIZES, st.integers(1, 30))
def test_truncated_text_in_blocks_is_the_truncated_whole(
    text: str, stops: list[str], sizes: list[int], max_new_tokens: int
) -> None:
    ids = to_ids(text)
    assume(len(ids) >= max_new_tokens)
    deltas = run(answer(*stops, max_new_tokens=max_new_tokens), cut(ids, sizes))
    whole = TOKENIZER.decode(ids[:max_new_tokens])
    end = first_stop(whole, stops)
    assert text_of(deltas) == whole[:end]
    assert deltas[-1].finish_reason == ("length" if end is None else "stop")
    if end is None:
        assert ids_of(deltas) == ids[:max_new_tokens]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTE_LEVEL, GEMMA_LIKE])
@given(data=st.data())
def test_any_tokens_in_blocks_read_as_the_whole(
    tokenizer: ChatTokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, 270), min_size=1, max_size=60))
    sizes = data.draw(SIZES)
    stops = data.draw(st.lists(st.text("ab\ufffd é", min_size=1, max_size=3), max_size=3))
    unending = answer(*stops, max_new_tokens=len(ids), ignore_eos=True, of=tokenizer)
    deltas = run(unending, cut(ids, sizes))
    whole = tokenizer.decode(ids)
    end = first_stop(whole, stops)
    assert text_of(deltas) == whole[:end]
    assert ids_of(deltas) == ids[: unending.completion_tokens]
    if end is None:
        assert unending.completion_tokens == len(ids)


@given(TEXT, STOPS, SIZES)
def test_no_more_is_held_than_may_become_a_stop_string(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    streamed = answer(*stops)
    received: list[int] = []
    sent = ""
    for block in cut(to_ids(text), sizes):
        delta = streamed.push(block)
        received += block
        sent += delta.text
        if delta.finish_reason is not None:
            break
        settled = bytes(token_id - 64 for token_id in received).decode(errors="ignore")
        assert len(settled) - len(sent) < max(map(len, stops), default=1)


# Drafts


def test_each_character_of_a_draft_has_the_state_of_its_token() -> None:
    ids = [*to_ids("ab"), EOS, *to_ids("c")]
    assert annotate(TOKENIZER, ids, [0, 1, 1, 2]) == ("abc", [0, 1, 2])


def test_a_character_of_several_tokens_has_the_lowest_state() -> None:
    assert annotate(TOKENIZER, to_ids("a€b"), [2, 1, 0, 2, 1]) == ("a€b", [2, 0, 1])


def test_bytes_that_are_no_character_do_not_change_the_state_of_their_neighbours() -> None:
    ids = [to_ids("€")[0], *to_ids("7"), to_ids("€")[1]]
    assert annotate(TOKENIZER, ids, [0, 1, 2]) == ("\ufffd7\ufffd", [0, 1, 2])


def test_a_draft_of_control_tokens_is_empty() -> None:
    assert annotate(TOKENIZER, [EOS, PAD], [1, 1]) == ("", [])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTE_LEVEL, GEMMA_LIKE])
@given(drafts=st.lists(st.tuples(st.integers(0, 270), st.integers(0, 2)), max_size=30))
def test_a_draft_reads_as_decode_does(
    tokenizer: ChatTokenizer, drafts: list[tuple[int, int]]
) -> None:
    ids, states = [i for i, _ in drafts], [state for _, state in drafts]
    text, of_characters = annotate(tokenizer, ids, states)
    assert text == tokenizer.decode(ids)
    assert len(of_characters) == len(text)
    assert set(of_characters) <= set(states)


def test_the_tags_of_thinking_and_tool_calls_are_kept_on_request() -> None:
    text = "<|channel>thought\nwhy<channel|><|tool_call>call:f{}<tool_call|>"
    ids = TOKENIZER.encode(text + "<turn|>behind")
    kept = Answer(TOKENIZER, replace(SAMPLING, return_tags=True), STOP_IDS)
    assert kept.push(ids) == Delta(text, tuple(TOKENIZER.encode(text)), "stop")
    assert answer().push(ids).text == "thought\nwhycall:f{}"
