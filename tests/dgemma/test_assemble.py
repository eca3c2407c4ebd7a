from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dgemma.assemble import Parts, assemble
from dgemma.engine.base import Capacity
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma.machine import Gpu, Machine
from dgemma.request import RawRequest
from dgemma.scheduler.events import Block, Event, Finished
from dgemma_build.demo.vocabulary import IMAGE, IMAGE_END, IMAGE_START
from tests.manifests import edit_manifest

TENSORRT = {"flavour": "tensorrt", "version": "11.4", "compute_capability": 90}


@pytest.fixture
def engine(demo_engine: Path, tmp_path: Path) -> Path:
    """A copy of the demo's engine, to be broken."""
    return Path(shutil.copytree(demo_engine, tmp_path / "engine"))


@pytest.fixture
def checkpoint(demo_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the demo's checkpoint, to be broken."""
    return Path(shutil.copytree(demo_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def parts(demo_engine: Path, demo_checkpoint: Path) -> Parts:
    return assemble(demo_engine, demo_checkpoint, slots=2, threads=1)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(engine: Path, checkpoint: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        assemble(engine, checkpoint, slots=1, threads=1)
    return str(caught.value)


def raw(**fields: Any) -> RawRequest:
    return RawRequest(
        **{"input_ids": [70, 71], "sampling_parameters": b'{"max_new_tokens": 5}', **fields}
    )


# What comes out


def test_the_parts_run_a_request(parts: Parts) -> None:
    heard: list[Event] = []
    parts.scheduler.submit(parts.parser.parse(raw(), "a"), heard.append)
    for _ in range(200):
        if not parts.scheduler.step():
            break
    last = heard[-1]
    assert isinstance(last, Finished) and last.finish_reason in ("stop", "length")
    assert isinstance(heard[0], Block)


def test_each_slot_may_have_a_commit_and_a_denoise_row(parts: Parts) -> None:
    assert parts.scheduler.engine.capacity == Capacity(slots=2, context=1024, rows=4)
    assert parts.scheduler.stats.slots == 2


@pytest.mark.parametrize(("asked", "context"), [(None, 1024), (200, 200), (5000, 1024)])
def test_the_context_is_what_was_asked_for_and_the_model_can_do(
    demo_engine: Path, demo_checkpoint: Path, asked: int | None, context: int
) -> None:
    made = assemble(demo_engine, demo_checkpoint, slots=1, max_model_len=asked, threads=1)
    assert made.scheduler.engine.capacity.context == context
    made.parser.parse(raw(input_ids=[70] * (context - 5)), "fits")
    with pytest.raises(InvalidRequest, match=f"max_model_len {context}"):
        made.parser.parse(raw(input_ids=[70] * (context - 4)), "too long")


@pytest.mark.parametrize("token", [IMAGE, IMAGE_START, IMAGE_END])
def test_image_tokens_are_those_of_the_config(parts: Parts, token: int) -> None:
    with pytest.raises(InvalidRequest, match="images are not served yet"):
        parts.parser.parse(raw(input_ids=[70, token]), "image")


# What is refused


def test_more_slots_than_there_is_memory_for(engine: Path, checkpoint: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        assemble(engine, checkpoint, slots=10**9)
    message = str(caught.value)
    assert message.startswith("K/V of 1000000000 slots × 1024 tokens ")
    assert "MiB are free; set fewer DGEMMA_SLOTS" in message


def test_an_engine_of_another_geometry(engine: Path, checkpoint: Path) -> None:
    edit(checkpoint / "config.json", canvas_length=64)
    message = refusal(engine, checkpoint)
    assert "was built for another geometry" in message
    assert str(engine) in message and str(checkpoint) in message


def test_an_engine_for_another_target(engine: Path, checkpoint: Path) -> None:
    edit_manifest(engine, target="sm90", runtime=TENSORRT)
    message = refusal(engine, checkpoint)
    assert "manifest.json: was compiled for a GPU of compute capability 90" in message
    assert "select an engine for target cpu" in message


def test_a_plan_takes_its_weights_from_a_store_that_is_set(
    engine: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu("NVIDIA GB10", "GPU-1", 121, "580", 2**37, 2**36)
    here = Machine(gpu, 2**36, {"tensorrt_rtx": "1.7"}, {})
    monkeypatch.setattr(Machine, "here", lambda: here)
    runtime = {"flavour": "tensorrt_rtx", "version": "1.7", "compute_capability": 121}
    edit_manifest(engine, target="sm121", runtime=runtime, weights=[])
    message = refusal(engine, checkpoint)
    assert "holds a plan without weights; set DGEMMA_WEIGHT_STORE to the store" in message


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"corrupt", None])
def test_a_corrupt_or_missing_file_of_the_engine_is_named(
    engine: Path, checkpoint: Path, name: str, content: bytes | None
) -> None:
    (engine / name).unlink()
    if content is not None:
        (engine / name).write_bytes(content)
    message = refusal(engine, checkpoint)
    assert name in message and "dgemma-build engine" in message


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors"])
def test_one_changed_byte_of_the_engine_is_noticed(
    engine: Path, checkpoint: Path, name: str
) -> None:
    content = bytearray((engine / name).read_bytes())
    content[len(content) // 2] ^= 1
    (engine / name).write_bytes(content)
    assert f"{name}: its content has changed" in refusal(engine, checkpoint)


def test_a_directory_without_an_engine(checkpoint: Path, tmp_path: Path) -> None:
    assert "no engine here" in refusal(tmp_path / "nowhere", checkpoint)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["{", None])
def test_a_corrupt_or_missing_file_of_the_checkpoint_is_named(
    engine: Path, checkpoint: Path, name: str, content: str | None
) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    assert name in refusal(engine, checkpoint)


def test_serving_needs_the_checkpoints_text_files_only(engine: Path, checkpoint: Path) -> None:
    """The weights are the engine's own."""
    (checkpoint / "model.safetensors").unlink()
    assert isinstance(assemble(engine, checkpoint, slots=1, threads=1), Parts)
