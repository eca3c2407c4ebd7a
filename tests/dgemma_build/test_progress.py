from __future__ import annotations

import io

from rich.console import Console

from dgemma_build.progress import shown


def test_a_log_gets_a_line_at_every_tenth() -> None:
    log = io.StringIO()
    now = 0.0
    with shown(Console(file=log), clock=lambda: now) as tell:
        for done in range(101):
            now = 2.0 * done  # seconds
            tell("compile", done, 100)
        tell("graph", 0, 0)
    parts = [f"compile {p} %, {200 - 2 * p} s to go" for p in range(10, 100, 10)]
    assert log.getvalue().splitlines() == ["compile 0 %", *parts, "compile 100 %", "graph 0 %"]


def test_a_second_thing_of_the_same_name_begins_anew() -> None:
    log = io.StringIO()
    with shown(Console(file=log), clock=lambda: 0.0) as tell:
        for done in (50, 100, 5, 60):
            tell("weights", done, 100)
    said = [line.partition(",")[0] for line in log.getvalue().splitlines()]
    assert said == [f"weights {percent} %" for percent in (50, 100, 5, 60)]


def test_a_terminal_gets_bars() -> None:
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=100)) as tell:
        tell("compile", 1, 2)
        tell("compile", 2, 2)
    assert "compile" in screen.getvalue() and "━" in screen.getvalue()
