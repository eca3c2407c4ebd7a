from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import dgemma_build.quantize.run
import dgemma_build.quantize.shards
from dgemma.errors import ConfigurationError
from dgemma.store_manifest import FILE_NAME, StoreManifest
from dgemma.weight_store import WeightStore
from tests.dgemma_build.quantize.float_checkpoint import (
    BANK,
    SHARDS,
    SOURCE,
    content,
    neighbours,
    refusal,
    run,
    write,
    written_by,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path)


class Interrupted(BaseException):
    """As KeyboardInterrupt is, without stopping pytest."""


def interrupted(checkpoint: Path, share: float) -> None:
    """A run that ends when this share of the weights is written."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "weights" and done >= share * total:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(checkpoint, progress=progress)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.97, 1.0])
def test_an_interrupted_run_is_gone_on_with_to_the_same_bytes(
    checkpoint: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(checkpoint)
    whole = content(checkpoint.parent / "store")
    shutil.rmtree(checkpoint.parent / "store")
    interrupted(checkpoint, share)
    assert neighbours(checkpoint) == {"store.partial"}
    with pytest.raises(ConfigurationError, match="no weight store here"):
        StoreManifest.read(checkpoint.parent / "store.partial")
    left = set(content(checkpoint.parent / "store.partial")) - {"journal.json"}
    assert left <= set(SHARDS), "half a shard was left"
    assert set(written_by(checkpoint, monkeypatch)) == set(SHARDS) - left
    assert content(checkpoint.parent / "store") == whole
    assert neighbours(checkpoint) == {"store"}


def test_progress_of_a_resumed_run_begins_where_the_other_ended(checkpoint: Path) -> None:
    interrupted(checkpoint, 0.97)
    heard: list[int] = []
    run(checkpoint, progress=lambda what, done, total: heard.append(done * (what == "weights")))
    first, total = next(done for done in heard if done), max(heard)
    assert first > 0.3 * total


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_finished_shard_that_was_damaged_is_written_again(
    checkpoint: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(checkpoint, 0.97)
    path = checkpoint.parent / "store.partial" / SHARDS[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        path.unlink()
    assert SHARDS[0] in written_by(checkpoint, monkeypatch)
    WeightStore.open(checkpoint.parent / "store", deep=True)


def test_shards_of_another_checkpoint_or_precision_are_not_gone_on_with(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(checkpoint, 0.97)
    write(checkpoint.parent, **{BANK: SOURCE[BANK] * 2})
    assert written_by(checkpoint, monkeypatch) == SHARDS
    shutil.rmtree(checkpoint.parent / "store")
    interrupted(checkpoint, 0.97)
    run(checkpoint, "fp8")
    WeightStore.open(checkpoint.parent / "store", deep=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "x"}'])
def test_a_broken_journal_is_refused_where_there_are_shards(
    checkpoint: Path, content: bytes
) -> None:
    """Nobody knows then whose they are, and nothing that is not ours is removed."""
    interrupted(checkpoint, 0.97)
    (checkpoint.parent / "store.partial" / "journal.json").write_bytes(content)
    assert "store.partial: exists and holds no unfinished store" in refusal(checkpoint)


def test_what_was_killed_before_its_first_shard_is_cleared_away(checkpoint: Path) -> None:
    work = checkpoint.parent / "store.partial"
    work.mkdir()
    (work / "journal.json.partial").write_bytes(b"{")
    run(checkpoint)
    assert neighbours(checkpoint) == {"store"}


def test_a_run_that_was_killed_leaves_half_a_shard_which_is_cleared_away(checkpoint: Path) -> None:
    interrupted(checkpoint, 0.97)
    work = checkpoint.parent / "store.partial"
    (work / "rest.safetensors.partial").write_bytes(b"half")
    (work / FILE_NAME).write_bytes(b"{}")
    run(checkpoint)
    assert set(content(checkpoint.parent / "store")) == {*SHARDS, FILE_NAME}


def test_an_interrupted_run_leaves_the_older_store(checkpoint: Path) -> None:
    old = run(checkpoint).manifest
    write(checkpoint.parent, **{BANK: SOURCE[BANK] * 2})
    interrupted(checkpoint, 0.5)
    assert StoreManifest.read(checkpoint.parent / "store") == old
    old.verify(checkpoint.parent / "store")
    assert not run(checkpoint).up_to_date
    assert neighbours(checkpoint) == {"store"}


def test_two_runs_do_not_write_one_store(checkpoint: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "weights" and done == total:
            assert "another run is writing this store" in refusal(checkpoint)

    run(checkpoint, progress=progress)
    WeightStore.open(checkpoint.parent / "store", deep=True)


def test_a_disk_that_fills_up_meanwhile_keeps_what_is_finished(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *rest: Any) -> Any:
        if path.name == SHARDS[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return dgemma_build.quantize.shards.write_shard(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dgemma_build.quantize.run, "write_shard", full)
        assert "no space left; free some and run the same command again" in refusal(checkpoint)
    assert written_by(checkpoint, monkeypatch) == SHARDS[1:]
