"""The hub's real client against a hub on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from dgemma.checkpoint_manifest import FILE_NAME, CheckpointManifest
from dgemma.profiles.pointer import CHECKPOINTS, Pointer
from tests.dgemma.download.checkpoints import (
    NAMES,
    WEIGHTS,
    bring,
    brought,
    forget_variables,
    write_checkpoint,
)
from tests.dgemma.download.fake_hub import COMMIT, REPOSITORY, FakeHub, serving

SOURCE = f"hf://{REPOSITORY}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    forget_variables(monkeypatch)
    with serving(write_checkpoint(tmp_path / "remote", b"weights" * 1000)) as hub:
        # The client has read its variables when it was imported, which another test may have done.
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_revision_of_the_hub_is_named_by_its_commit(
    hub: FakeHub, store: Path, revision: str
) -> None:
    place = brought(SOURCE + revision, store)
    assert place == store / CHECKPOINTS / COMMIT
    assert {path.name for path in place.iterdir()} == {*NAMES, WEIGHTS, FILE_NAME}
    manifest = CheckpointManifest.read(place)
    manifest.verify(place)
    assert manifest.origin == f"{SOURCE}@{COMMIT}"
    pointer = Pointer.read(store)
    assert pointer is not None and pointer.current.checkpoint == COMMIT
    assert sorted(hub.sent) == sorted((*NAMES, WEIGHTS))
    assert brought(SOURCE + revision, store) == place
    assert len(hub.sent) == len(NAMES) + 1


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_file_that_is_not_what_the_hub_says_is_fetched_again(
    hub: FakeHub, store: Path, name: str
) -> None:
    content = bytearray(hub.files[name])
    content[0] ^= 1
    hub.damaged[name] = bytes(content)
    result = bring(SOURCE, store)
    assert result.exit_code == 1
    assert f"{SOURCE}: {name}: is not what the hub says of it" in result.stderr
    assert Pointer.read(store) is None
    hub.damaged, hub.sent = {}, []
    place = brought(SOURCE, store)
    assert hub.sent == [name]
    assert (place / name).read_bytes() == hub.files[name]


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        ((404, "RepoNotFound"), 2, "no such repository, or HF_TOKEN may not see it"),
        ((403, "GatedRepo"), 2, "accept them on its page, and set HF_TOKEN"),
        ((500, ""), 1, "run it again to go on, or bring the model from the directory of a mirror"),
    ],
)
def test_what_the_hub_refuses_is_said(
    hub: FakeHub, store: Path, refusal: tuple[int, str], code: int, said: str
) -> None:
    hub.refusal = refusal
    result = bring(SOURCE, store)
    assert result.exit_code == code and result.stderr.startswith(f"error: {SOURCE}: ")
    assert said in result.stderr


def test_a_revision_that_is_not_there(hub: FakeHub, store: Path) -> None:
    result = bring(f"{SOURCE}@v2", store)
    assert result.exit_code == 2 and f"{SOURCE}@v2: the hub has no such revision" in result.stderr


def test_a_repository_that_holds_no_checkpoint(hub: FakeHub, store: Path) -> None:
    del hub.files["config.json"]
    result = bring(SOURCE, store)
    assert result.exit_code == 2 and f"{SOURCE}: holds no checkpoint" in result.stderr


def test_without_a_network_a_mirror_is_pointed_out(
    hub: FakeHub, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = bring(SOURCE, store)
    assert result.exit_code == 1 and "bring the model from the directory" in result.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = bring(SOURCE, store)
    assert result.exit_code == 2 and "HF_HUB_OFFLINE forbids the network" in result.stderr


def test_an_interrupt_ends_it_at_once_and_the_next_run_fetches_what_is_missing(
    hub: FakeHub, store: Path
) -> None:
    hub.stalled = WEIGHTS
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    command = (sys.executable, "-m", "dgemma", "download-to-cache")
    process = subprocess.Popen(
        [*command, "--source", SOURCE, "--store", str(store)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    work = store / CHECKPOINTS / f"{COMMIT}.partial"
    try:
        assert hub.is_stalled.wait(60)
        deadline = time.monotonic() + 20
        while not all((work / name).exists() for name in NAMES) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=8)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "interrupted; run it again to go on" in said
    assert [path.name for path in (store / CHECKPOINTS).iterdir()] == [work.name]
    assert not list(work.rglob("*.incomplete"))
    hub.stalled, hub.sent = None, []
    assert brought(SOURCE, store).name == COMMIT
    assert hub.sent == [WEIGHTS]
