from __future__ import annotations

from pathlib import Path

from dgemma_loadtest.report.run_page import report
from tests.loadtest import modelled_run
from tests.loadtest.browser import DARK, LIGHT, in_a_browser, opened, pictured


@in_a_browser
def test_a_browser_shows_the_report_and_has_nothing_to_say(tmp_path: Path) -> None:
    made = report(modelled_run.tenants(tmp_path / "run")).path
    document, console = opened(made, tmp_path / "profile")
    assert console == []
    assert document.count("<figure") == 6


@in_a_browser
def test_a_page_with_a_fault_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "faulty.html"
    page.write_text("<!doctype html><script>console.error('no')</script>")
    assert opened(page, tmp_path / "profile")[1]


@in_a_browser
def test_light_and_dark_are_not_the_same(tmp_path: Path) -> None:
    made = report(modelled_run.tenants(tmp_path / "run")).path
    pictures = [tmp_path / f"{scheme}.png" for scheme in (LIGHT, DARK)]
    for scheme, picture in zip((LIGHT, DARK), pictures, strict=True):
        assert pictured(made, tmp_path / f"profile-{scheme}", scheme, picture) == (1280, 1600)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
