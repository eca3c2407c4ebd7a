from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dgemma.engine.host_memory import check_fits, free_bytes
from dgemma.errors import ConfigurationError

MEMINFO = "MemTotal:       32000000 kB\nMemFree:         1000 kB\nMemAvailable:    2000 kB\n"


def host(root: Path, **group: str) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in group.items():
        (root / "sys/fs/cgroup" / f"memory.{name}").write_text(text)
    return root


def test_a_host_has_what_it_can_make_available(tmp_path: Path) -> None:
    assert free_bytes(host(tmp_path)) == 2000 * 1024
    assert free_bytes(host(tmp_path / "unlimited", max="max\n", current="5\n")) == 2000 * 1024


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    root = host(tmp_path, max="900000\n", current="500000\n", stat="anon 1\ninactive_file 40000\n")
    assert free_bytes(root) == 440_000


def test_a_container_that_uses_all_it_may_has_nothing(tmp_path: Path) -> None:
    assert free_bytes(host(tmp_path, max="100\n", current="200\n")) == 0


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None


def test_this_machine_has_some() -> None:
    assert (free_bytes() or 0) > 2**20


def test_what_does_not_fit_is_refused_with_what_to_do() -> None:
    needs = {"K/V of 8 slots × 1024 tokens": 3 * 2**20, "prefix cache": 2**20}
    with pytest.raises(ConfigurationError) as caught:
        check_fits(needs, 4 * 2**20 - 1, "set fewer slots")
    assert str(caught.value) == (
        "K/V of 8 slots × 1024 tokens 3.0 MiB, prefix cache 1.0 MiB: only 4.0 MiB are free; "
        "set fewer slots"
    )


def test_what_fits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_fits({"K/V": 2**20}, 2**21, "")
        check_fits({"K/V": 2**20}, None, "")
    assert caplog.messages == ["K/V 1.0 MiB; free: 2.0 MiB", "K/V 1.0 MiB; free: unknown MiB"]
