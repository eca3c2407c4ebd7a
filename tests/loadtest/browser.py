"""Headless Chromium, where there is one: what a page looks like and what it complains of."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("DGEMMA_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
in_a_browser = pytest.mark.skipif(
    BROWSER is None,
    reason="no headless Chromium: apt-get install chromium, or name one in DGEMMA_CHROMIUM",
)
LIGHT, DARK = 1, 0  # as Blink counts them


def opened(page: Path, profile: Path, scheme: int = LIGHT) -> tuple[str, list[str]]:
    """The page's document after it has loaded, and what its console said."""
    ran = _run(profile, scheme, page, "--dump-dom", "--enable-logging=stderr", "--v=0")
    return ran.stdout, re.findall(r"CONSOLE[^\n]*", ran.stderr)


def pictured(page: Path, profile: Path, scheme: int, picture: Path) -> tuple[int, int]:
    """A picture of the page's top; its width and height."""
    _run(profile, scheme, page, f"--screenshot={picture}", "--window-size=1280,1600")
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height


def _run(profile: Path, scheme: int, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={scheme}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
