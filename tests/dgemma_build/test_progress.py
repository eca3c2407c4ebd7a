from __future__ import annotations

import io

from rich.console import Console

from dgemma_build.progress import shown


def test_a_log_gets_a_line_at_every_tenth() -> None:
    log = io.StringIO()
    with shown(Console(file=log)) as tell:
        for done in range(101):
            tell("compile", done, 100)
        tell("graph", 0, 0)
    lines = log.getvalue().splitlines()
    assert lines == [f"compile {percent} %" for percent in range(0, 101, 10)] + ["graph 0 %"]


def test_a_terminal_gets_bars() -> None:
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=100)) as tell:
        tell("compile", 1, 2)
        tell("compile", 2, 2)
    assert "compile" in screen.getvalue() and "━" in screen.getvalue()
