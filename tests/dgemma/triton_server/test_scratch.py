from __future__ import annotations

import os
import subprocess
from pathlib import Path

from dgemma.triton_server import scratch


def test_a_scratch_directory_names_its_process() -> None:
    with scratch.make() as path:
        assert Path(path).name.startswith(f"{scratch.PREFIX}{os.getpid()}-")
    assert not Path(path).exists()


def test_only_directories_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        "stale": f"{scratch.PREFIX}{ended.pid}-a",
        "ours": f"{scratch.PREFIX}{os.getpid()}-b",
        "foreign": f"{scratch.PREFIX}words-c",
    }
    for name in names.values():
        (tmp_path / name / "backend").mkdir(parents=True)
    assert scratch.remove_stale(tmp_path) == [tmp_path / names["stale"]]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([names["ours"], names["foreign"]])
