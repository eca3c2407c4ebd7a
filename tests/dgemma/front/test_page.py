"""The page at `/`, in a real browser where there is one."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import httpx2
import pytest

from tests.dgemma.fake_triton import USAGE, FakeTriton, failure, inputs, response
from tests.dgemma.front.conftest import Stage

SEED = 2**62 + 1  # more than a number in JavaScript can hold
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("DGEMMA_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
in_a_browser = pytest.mark.skipif(
    BROWSER is None,
    reason="no headless Chromium: apt-get install chromium, or name one in DGEMMA_CHROMIUM",
)


def test_the_page_needs_nothing_from_elsewhere(http: httpx2.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"""(src|href)\s*=\s*(?!["']?data:)""", page.text)
    assert not re.search(r"https?://|@import|url\(", page.text)


def test_the_page_says_nothing_as_markup(http: httpx2.Client) -> None:
    page = http.get("/").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


class Page:
    """What a browser shows of the page, `wait_s` seconds after it was opened."""

    def __init__(self, front: str, profile: Path, wait_s: float = 5.0, **asked: str) -> None:
        assert BROWSER is not None
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={profile}", f"--virtual-time-budget={wait_s * 1000:.0f}"]
        process = subprocess.run(
            [*command, f"{front}/?{urlencode({**asked, 'run': ''})}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        self.source = process.stdout

    @property
    def state(self) -> str:
        return self._found(r'<body data-state="(\w+)"')

    @property
    def status(self) -> str:
        return html.unescape(self._found(r'<p id="status" role="status">(.*?)</p>'))

    @property
    def canvas(self) -> list[tuple[str, str]]:
        """Class and text of each run of characters."""
        content = self._found(r'<div id="canvas" aria-live="off">(.*?)</div>')
        runs = re.findall(r'<span class="(\w*)">(.*?)</span>', content, re.DOTALL)
        return [(name, html.unescape(text)) for name, text in runs if text]

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, self.source, re.DOTALL)
        assert found is not None, self.source
        return found[1]


@in_a_browser
def test_a_prompt_is_answered_on_the_page(front: str, stage: Stage, tmp_path: Path) -> None:
    def script(fake: FakeTriton, tensors: dict[str, Any], context: object) -> Iterator[Any]:
        yield response("block", "Hello, world")
        yield response("final", finish_reason="stop", usage={**USAGE, "seed": SEED})

    stage.play(script)
    page = Page(front, tmp_path, prompt="hi <b>", seed=str(SEED))
    assert page.state == "done"
    assert page.canvas == [("", "Hello, world")]
    for said in (
        "30 tokens in 0.15 s",
        "200 tokens/s",
        "7 steps in 2 blocks",
        "9 passes",
        f"seed {SEED}",
    ):
        assert said in page.status
    sent = inputs(stage.fake.requests[-1])
    assert sent["stream"] == "draft"
    assert "hi <b>" in sent["messages"]
    assert json.loads(sent["sampling_parameters"])["seed"] == SEED


@in_a_browser
def test_the_canvas_shows_what_is_settled_in_it(front: str, stage: Stage, tmp_path: Path) -> None:
    def unfinished(
        fake: FakeTriton, tensors: dict[str, Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        yield response("block", "Done. ", block_index=0, denoising_step=2)
        states = (1, 1, 0, 0, 2, 2)
        yield response("draft", "<b>é€x", states=states, block_index=1, denoising_step=1)
        yield from failure(grpc.StatusCode.UNAVAILABLE, "it is <stopping>")(fake, tensors, context)

    stage.play(unfinished)
    page = Page(front, tmp_path, prompt="p", template="<|gap:4|>€x")
    assert page.canvas == [("", "Done. "), ("s1", "<b"), ("s0", ">é"), ("s2", "€x")]
    assert (page.state, page.status) == ("error", "it is <stopping>")
    assert inputs(stage.fake.requests[-1])["canvas_template"] == "<|gap:4|>€x"
