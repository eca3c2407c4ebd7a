"""Shows an answer while it is denoised: a canvas redrawn in place, or plain lines.

Knows updates and the terminal; knows nothing of requests or servers. Whatever text arrives, no
control character of it reaches a terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, repeat

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from dgemma.kserve import Update

# Indexed by state. They differ by more than colour, so they can be told apart without it.
_STATES = (("provisional", "dim"), ("accepted", "bold green"), ("pinned", "underline cyan"))
_PINNED = 2
_TAB = "    "

Cell = tuple[str, str]  # a character as it is shown (never a control character), and its style


def watch(updates: Iterable[Update], console: Console) -> Generator[Update, None, None]:
    """Shows each update on `console` and passes it on; the whole answer is left there.

    A terminal gets a canvas that is redrawn at every denoise step, below the lines of the answer
    that are complete. Anything else gets one line per denoise step and then the answer.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return _redraw(updates, console)
    return _print_lines(updates, console)


def visible(text: str) -> str:
    """`text` with control characters (other than line breaks) replaced by harmless symbols."""
    return "".join(char if char == "\n" else _visible(char) for char in text)


class CanvasView:
    """The part of the screen that changes: header, unfinished line, canvas, legend.

    It is cut to the height of the terminal, from the top. Lines break at the exact width rather
    than between words, so a position stays where it is while its neighbours change.
    """

    def __init__(self) -> None:
        self._line: list[Cell] = []  # committed, but its line is not complete yet
        self._draft: Update | None = None

    def show(self, draft: Update) -> None:
        """Makes `draft` the canvas."""
        self._draft = draft

    def commit(self, block: Update) -> list[Text]:
        """Takes the canvas's place with its final text; returns the lines that are complete."""
        states: tuple[int, ...] = ()
        if self._draft and self._draft.text.startswith(block.text):
            states = self._draft.states
        self._draft = None
        self._line += [
            (char, _STATES[_PINNED][1] if state == _PINNED else "")
            for char, state in _with_states(block.text, states)
        ]
        *complete, self._line = _split_lines(self._line)
        return [Text.assemble(*line) for line in complete]

    def finish(self) -> Text | None:
        """The last line, where the answer does not end with a line break."""
        line, self._line, self._draft = self._line, [], None
        return Text.assemble(*line) if line else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._draft is None:
            return
        step = f"block {self._draft.block_index} · step {self._draft.denoising_step}"
        yield Text(step, style="bold", no_wrap=True, overflow="ellipsis")
        canvas = [
            (char, _STATES[state][1])
            for char, state in _with_states(self._draft.text, self._draft.states)
        ]
        lines = [
            row
            for line in _split_lines(self._line + canvas)
            for row in _fold(line, options.max_width)
        ]
        room = max(1, console.size.height - 3)  # header, legend and the cursor's line
        for row in lines[-room:]:
            yield Text.assemble(*row, no_wrap=True)
        legend = Text(no_wrap=True, overflow="ellipsis")
        for name, style in _STATES:
            legend.append(name, style=style).append("  ")
        legend.rstrip()
        yield legend


def _redraw(updates: Iterable[Update], console: Console) -> Generator[Update, None, None]:
    view = CanvasView()
    with Live(view, console=console, auto_refresh=False, transient=True) as live:
        try:
            for update in updates:
                if update.kind == "draft":
                    view.show(update)
                else:
                    for line in view.commit(update):
                        console.print(line, soft_wrap=True)
                live.refresh()
                yield update
        finally:
            last_line = view.finish()
            if last_line is not None:
                console.print(last_line, soft_wrap=True)


def _print_lines(updates: Iterable[Update], console: Console) -> Generator[Update, None, None]:
    answer: list[str] = []
    for update in updates:
        if update.kind == "draft":
            line = visible(update.text).replace("\n", "⏎")
            header = f"block {update.block_index} step {update.denoising_step}"
            console.out(f"{header}: {line}", highlight=False)
        else:
            answer.append(update.text)
        if update.kind == "final":
            text = "".join(answer)
            shown = visible(text) if console.is_terminal else text
            # Not by way of rich, which replaces tabs and drops control characters.
            console.file.write(shown if shown.endswith("\n") else shown + "\n")
            console.file.flush()
        yield update


def _with_states(text: str, states: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Characters as they are shown, each with its state; provisional where none is given."""
    for char, state in zip(text, chain(states, repeat(0)), strict=False):
        yield (char if char == "\n" else _visible(char)), min(state, _PINNED)


def _visible(char: str) -> str:
    if char == "\t":
        return _TAB
    if unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"}:
        return char
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))  # the control pictures: ␀ for NUL, ␛ for ESC
    return "␡" if char == "\x7f" else "\N{REPLACEMENT CHARACTER}"


def _split_lines(cells: list[Cell]) -> list[list[Cell]]:
    """The cells between line breaks; one line more than there are line breaks."""
    lines: list[list[Cell]] = [[]]
    for cell in cells:
        if cell[0] == "\n":
            lines.append([])
        else:
            lines[-1].append(cell)
    return lines


def _fold(line: list[Cell], width: int) -> list[list[Cell]]:
    """The line in rows of at most `width` columns; at least one row."""
    rows: list[list[Cell]] = [[]]
    column = 0
    for cell in line:
        columns = cell_len(cell[0])
        if column + columns > width and rows[-1]:
            rows.append([])
            column = 0
        rows[-1].append(cell)
        column += columns
    return rows
