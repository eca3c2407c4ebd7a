from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style
from rich.text import Text

from dgemma.kserve import Update
from dgemma.watch import CanvasView, visible, watch

ESC = "\x1b"


def draft(text: str, states: tuple[int, ...] = (), block: int = 0, step: int = 1) -> Update:
    return Update("draft", text, (), states, block, step, None, None)


def block(text: str, index: int = 0) -> Update:
    return Update("block", text, (), (), index, 2, None, None)


def final(text: str = "") -> Update:
    return Update("final", text, (), (), 0, 2, "stop", {})


ANSWER = [
    draft("Hexlo\nw", (1, 1, 0, 1, 1, 2, 2)),
    draft("Hello\nw", (1, 1, 1, 1, 1, 2, 2), step=2),
    block("Hello\nw"),
    draft("orld", block=1),
    block("orld", index=1),
    final(),
]


def terminal(width: int = 60, height: int = 20) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=width,
        height=height,
        highlight=False,
        legacy_windows=False,
        _environ={"TERM": "xterm-256color"},
    )


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=60, highlight=False)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(updates: Iterable[Update], console: Console) -> str:
    list(watch(updates, console))
    return output(console)


def screen(written: str) -> list[str]:
    """The lines that a terminal would show, without the empty ones at the end."""
    lines, at = [""], 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if piece == "\n":
            at += 1
            lines += [""] * (at == len(lines))
        elif piece == f"{ESC}[2K":
            lines[at] = ""
        elif piece == f"{ESC}[1A":
            at -= 1
        elif piece[0] not in {ESC, "\r"}:
            lines[at] += piece
    while lines and not lines[-1]:
        lines.pop()
    return lines


def styles(view: CanvasView, console: Console) -> dict[str, Style]:
    """The style of each visible character of the canvas, without header and legend."""
    _, *canvas, _ = console.render_lines(view, pad=False)
    return {
        char: segment.style or Style()
        for row in canvas
        for segment in row
        for char in segment.text
        if char.strip()
    }


# The canvas on a terminal


def test_accepted_provisional_and_pinned_tokens_look_different() -> None:
    view = CanvasView()
    view.show(draft("abc", (0, 1, 2)))
    seen = styles(view, terminal())
    assert len({str(seen[char]) for char in "abc"}) == 3


def test_the_states_can_be_told_apart_without_colour() -> None:
    view = CanvasView()
    view.show(draft("abc", (0, 1, 2)))
    seen = styles(view, terminal())
    without = {(seen[c].bold, seen[c].dim, seen[c].underline) for c in "abc"}
    assert len(without) == 3


def test_the_legend_shows_each_state_as_it_looks() -> None:
    view, console = CanvasView(), terminal()
    view.show(draft("abc", (0, 1, 2)))
    seen = styles(view, console)
    legend = {s.text.strip(): s.style for s in console.render_lines(view, pad=False)[-1]}
    assert legend["provisional"] == seen["a"]
    assert legend["accepted"] == seen["b"]
    assert legend["pinned"] == seen["c"]


def test_the_header_names_block_and_step() -> None:
    view, console = CanvasView(), terminal()
    view.show(draft("x", block=3, step=7))
    assert "block 3 · step 7" in console.render_lines(view, pad=False)[0][0].text


def test_a_canvas_without_states_is_provisional_throughout() -> None:
    view, console = CanvasView(), terminal()
    view.show(draft("ab", (0,)))
    seen = styles(view, console)
    assert seen["a"] == seen["b"]


def test_pinned_text_stays_marked_when_its_block_is_committed() -> None:
    view = CanvasView()
    view.show(draft("a=1\n", (2, 2, 0, 2)))
    [line] = view.commit(block("a=1\n"))
    assert line.plain == "a=1"
    marked = [str(span.style) for span in line.spans if "underline" in str(span.style)]
    assert len(marked) == 2


def test_a_committed_text_that_differs_from_the_draft_is_not_marked() -> None:
    view = CanvasView()
    view.show(draft("abc", (2, 2, 2)))
    assert view.commit(block("xyz\n")) == [Text("xyz")]
    assert "underline" not in str(view.commit(block("xyz\n"))[0].spans)


def test_a_tall_canvas_is_cut_from_the_top_to_the_height_of_the_terminal() -> None:
    view, console = CanvasView(), terminal(height=10)
    view.show(draft("\n".join(f"line {number}" for number in range(50))))
    rows = ["".join(segment.text for segment in row) for row in console.render_lines(view)]
    assert len(rows) <= 9
    assert any("line 49" in row for row in rows)
    assert not any("line 10" in row for row in rows)


@given(st.text(st.sampled_from("ab 界é\n"), max_size=80), st.integers(5, 20))
def test_lines_break_at_the_width_and_lose_nothing(text: str, width: int) -> None:
    view, console = CanvasView(), terminal(width=width, height=100)
    view.show(draft(text))
    _, *rows, _ = console.render_lines(view, pad=False)
    joined = "".join(segment.text for row in rows for segment in row)
    assert joined == text.replace("\n", "")


# A terminal is redrawn, anything else gets lines


def test_a_terminal_is_redrawn_in_place_and_keeps_the_answer() -> None:
    text = shown(ANSWER, terminal())
    for step in ("block 0 · step 1", "block 0 · step 2", "block 1 · step 1"):
        assert step in text
    assert screen(text) == ["Hello", "world"]


def test_while_it_runs_a_terminal_shows_the_answer_so_far_and_one_canvas_below_it() -> None:
    console = terminal()
    seen = [screen(output(console)) for _ in watch(ANSWER, console)]
    legend = "provisional  accepted  pinned"
    assert seen == [
        ["block 0 · step 1", "Hexlo", "w", legend],
        ["block 0 · step 2", "Hello", "w", legend],
        ["Hello"],
        ["Hello", "block 1 · step 1", "world", legend],
        ["Hello"],
        ["Hello"],
    ]


@pytest.mark.parametrize("term", ["pipe", "dumb"])
def test_anything_else_gets_a_line_per_step_and_then_the_answer(term: str) -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, width=60, _environ={"TERM": "dumb"})
    assert shown(ANSWER, pipe() if term == "pipe" else dumb) == (
        "block 0 step 1: Hexlo⏎w\nblock 0 step 2: Hello⏎w\nblock 1 step 1: orld\nHello\nworld\n"
    )


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\n\n"])
def test_the_answer_ends_with_one_line_break_of_its_own_at_most(text: str) -> None:
    assert shown([block(text), final()], pipe()) == (text if text.endswith("\n") else text + "\n")


def test_an_answer_in_one_response_is_shown_too() -> None:
    assert shown([final("whole")], pipe()) == "whole\n"
    assert "whole" in shown([final("whole")], terminal())


@pytest.mark.parametrize("console", [pipe(), terminal()])
def test_every_update_is_passed_on(console: Console) -> None:
    assert list(watch(ANSWER, console)) == ANSWER


def test_long_lines_are_not_broken_in_the_answer() -> None:
    line = "word " * 100
    assert line in shown([draft(line), block(line), final()], pipe())
    assert line in shown([block(line), final()], terminal(width=20))
    assert line in shown([block(line + "\nend"), final()], terminal(width=20))


def test_an_interrupted_terminal_keeps_what_was_committed() -> None:
    def interrupted() -> Iterator[Update]:
        yield block("one\ntwo")
        raise KeyboardInterrupt

    console = terminal()
    with pytest.raises(KeyboardInterrupt):
        list(watch(interrupted(), console))
    assert "one" in output(console)
    assert "two" in output(console)
    assert f"{ESC}[?25h" in output(console)  # the cursor is shown again


# Control characters

HARMFUL = st.text(st.characters(categories=["Cc", "Cs", "Lu", "Zl", "Zp"]), max_size=30)


@given(HARMFUL)
def test_no_control_character_is_visible(text: str) -> None:
    safe = visible(text)
    assert all(char == "\n" or char.isprintable() for char in safe)
    assert safe.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("né 😀\n", "né 😀\n"), (f"{ESC}[2J", "␛[2J"), ("\r\0", "␍␀"), ("\x7f", "␡"), ("\x9b", "�")],
)
def test_harmful_characters_have_symbols_and_others_stay(text: str, expected: str) -> None:
    assert visible(text) == expected


@pytest.mark.parametrize("kind", ["draft", "block", "final"])
def test_nothing_that_arrives_controls_a_terminal(kind: str) -> None:
    attack = f"{ESC}[31mred{ESC}]0;title\a\r\b\x9b2J"
    update = Update(kind, attack, (), (1,) * len(attack), 0, 1, None, None)
    text = shown([update, final()], terminal(width=100))
    assert f"{ESC}[31mred" not in text
    assert f"{ESC}]0" not in text
    assert not set(text) & set("\a\b\x9b")


def test_a_pipe_gets_the_text_as_it_is() -> None:
    assert shown([block("a\tb\x00"), final()], pipe()) == "a\tb\x00\n"


def test_markup_in_the_text_is_text() -> None:
    updates = [draft("[bold]x[/bold]"), block("[bold]x[/bold]"), final()]
    assert "[bold]x[/bold]" in shown(updates, terminal())
    assert shown(updates, pipe()).endswith("[bold]x[/bold]\n")
