from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

import dgemma_build.cpu
import dgemma_build.definition
import dgemma_build.engine
from dgemma.engine.base import Capacity, Row
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.engine.torch_reference import TorchReference
from dgemma.errors import ConfigurationError
from dgemma.manifest import FILE_NAME, Manifest
from dgemma.model.checkpoint import Checkpoint, hf_name
from dgemma.profiles.locks import building
from dgemma.tail.graph import DRAW, LOOK, MOVE
from dgemma_build.engine import Built, build_engine
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.model.tiny_weights import hf_tensors, random_network, write_weights
from tests.shared import emitted

GEOMETRY = geometry_of(hidden_size=24, vocab_size=40)
SOURCE = random_network(GEOMETRY)
L = GEOMETRY.canvas_length


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """Emitted once; most of these tests are about what surrounds it."""
    return emitted(GEOMETRY, fused=True, shared=True)


@pytest.fixture(autouse=True)
def quick_emission(monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto) -> None:
    def emit(*_: Any, **__: Any) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        return copy

    monkeypatch.setattr(dgemma_build.cpu, "emit", emit)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "checkpoint", GEOMETRY, hf_tensors(SOURCE))


def build(checkpoint: Path, out: Path) -> Built:
    return build_engine(checkpoint, "cpu", "fp32", out)


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def neighbours(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()} - {"checkpoint"}


# What is built


def test_an_engine_is_a_graph_a_store_and_a_manifest(checkpoint: Path, tmp_path: Path) -> None:
    built = build(checkpoint, tmp_path / "engine")
    assert not built.up_to_date
    manifest = Manifest.read(tmp_path / "engine")
    assert manifest == built.manifest
    files = {manifest.graph, "index.onnx", *manifest.weights, LOOK.file, DRAW.file, MOVE.file}
    assert set(stamps(tmp_path / "engine")) == {*files, FILE_NAME}
    assert set(manifest.files) == files
    assert manifest.tail == (LOOK.file, DRAW.file, MOVE.file)
    assert manifest.index == "index.onnx"
    assert (manifest.target, manifest.precision) == ("cpu", "fp32")
    assert manifest.geometry == GEOMETRY
    manifest.verify(tmp_path / "engine")
    assert neighbours(tmp_path / "engine") == {"engine"}


def test_the_store_holds_the_checkpoints_weights_by_the_networks_names(
    checkpoint: Path, tmp_path: Path
) -> None:
    build(checkpoint, tmp_path / "engine")
    stored = load_file(tmp_path / "engine" / "weights.safetensors")
    wanted = dict(SOURCE.named_parameters())
    assert stored.keys() == wanted.keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, wanted[name]), name


def test_the_graph_file_points_into_the_store(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engine")
    model = onnx.load(tmp_path / "engine" / "graph.onnx", load_external_data=False)
    outside = {
        t.name: {entry.key: entry.value for entry in t.external_data}
        for t in model.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }
    assert "embed_tokens.weight" in outside and len(outside) > 20
    assert {where["location"] for where in outside.values()} == {"weights.safetensors"}


def test_the_engine_computes_what_the_reference_does(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engine")
    capacity = Capacity(slots=2, context=64, rows=4)
    engine = OnnxEngine(tmp_path / "engine", capacity, threads=1)
    reference = TorchReference.from_checkpoint(Checkpoint(checkpoint), capacity)
    assert torch.equal(engine.embedding(), reference.embedding())
    for rows in _conversation():
        got, wanted = engine.forward(rows), reference.forward(rows)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def _conversation() -> Iterator[list[Row]]:
    """Chunks of a prompt, a fused pass, and a second slot beside it."""
    generator = torch.Generator().manual_seed(0)

    def row(slot: int, start: int, valid: int, denoise: bool, partner: int = -1) -> Row:
        ids = torch.randint(GEOMETRY.vocab_size, (L,), generator=generator)
        soft = torch.randn(L, GEOMETRY.hidden_size, generator=generator) if denoise else None
        return Row(ids, slot, start, valid, denoise, soft, partner)

    yield [row(0, 0, L, False)]
    yield [row(0, L, 5, False), row(0, L + 5, L, True, 0), row(1, 0, 3, False)]
    yield [row(1, 3, L, True), row(0, L + 5, L, False), row(0, 2 * L + 5, L, True, 1)]


def test_progress_ends_at_its_total(checkpoint: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        heard.append((what, done, total))

    build_engine(checkpoint, "cpu", "fp32", tmp_path / "engine", progress)
    for what in ("weights", "graph"):
        mine = [(done, total) for name, done, total in heard if name == what]
        assert mine == sorted(mine)
        assert mine[-1][0] == mine[-1][1] > 0


# When nothing is to be done


def test_what_is_up_to_date_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    first = build(checkpoint, tmp_path / "engine")
    before = stamps(tmp_path / "engine")
    again = build(checkpoint, tmp_path / "engine")
    assert again == Built(first.manifest, up_to_date=True)
    assert stamps(tmp_path / "engine") == before


def test_a_checkpoint_that_was_moved_or_copied_is_the_same(
    checkpoint: Path, tmp_path: Path
) -> None:
    build(checkpoint, tmp_path / "engine")
    copy = Path(shutil.copytree(checkpoint, tmp_path / "elsewhere"))
    assert build(copy, tmp_path / "engine").up_to_date


def test_other_weights_are_another_engine(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engine")
    write_weights(checkpoint, GEOMETRY, hf_tensors(random_network(GEOMETRY, seed=1)))
    assert not build(checkpoint, tmp_path / "engine").up_to_date
    stored = load_file(tmp_path / "engine" / "weights.safetensors")["norm.weight"]
    wanted = load_file(checkpoint / "model.safetensors")[hf_name("norm.weight")]
    assert torch.equal(stored, wanted)


def test_another_definition_of_the_tail_is_another_engine(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(checkpoint, tmp_path / "engine")
    fewer = dgemma_build.engine._BUILDERS[:-1]
    monkeypatch.setattr(dgemma_build.engine, "_BUILDERS", fewer)
    assert not build(checkpoint, tmp_path / "engine").up_to_date


def test_another_definition_of_the_network_is_another_engine(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(checkpoint, tmp_path / "engine")
    monkeypatch.setattr(dgemma_build.definition, "MODULES", (dgemma_build.engine,))
    assert not build(checkpoint, tmp_path / "engine").up_to_date


@pytest.mark.parametrize(
    "name", ["graph.onnx", "index.onnx", "weights.safetensors", "tail_look.onnx"]
)
@pytest.mark.parametrize("content", [b"", b"broken", None])
def test_a_broken_engine_is_built_again(
    checkpoint: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    build(checkpoint, tmp_path / "engine")
    (tmp_path / "engine" / name).unlink()
    if content is not None:
        (tmp_path / "engine" / name).write_bytes(content)
    built = build(checkpoint, tmp_path / "engine")
    assert not built.up_to_date
    built.manifest.verify(tmp_path / "engine")


# Interruption


class Interrupted(BaseException):
    """As KeyboardInterrupt is, without stopping pytest."""


@pytest.mark.parametrize("at", ["weights", "graph"])
def test_an_interrupted_build_leaves_nothing(checkpoint: Path, tmp_path: Path, at: str) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        build_engine(checkpoint, "cpu", "fp32", tmp_path / "engine", interrupt)
    assert neighbours(tmp_path / "engine") == set()
    assert not build(checkpoint, tmp_path / "engine").up_to_date


def test_an_interrupted_build_leaves_the_older_engine(checkpoint: Path, tmp_path: Path) -> None:
    old = build(checkpoint, tmp_path / "engine").manifest
    write_weights(checkpoint, GEOMETRY, hf_tensors(random_network(GEOMETRY, seed=1)))

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "graph":
            raise Interrupted

    with pytest.raises(Interrupted):
        build_engine(checkpoint, "cpu", "fp32", tmp_path / "engine", interrupt)
    assert Manifest.read(tmp_path / "engine") == old
    old.verify(tmp_path / "engine")
    assert neighbours(tmp_path / "engine") == {"engine"}


def test_what_a_killed_build_left_is_cleared_away(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("engine.partial", "engine.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    build(checkpoint, tmp_path / "engine")
    assert neighbours(tmp_path / "engine") == {"engine"}


def test_of_two_builders_the_second_waits_and_finds_what_the_first_has_made(
    checkpoint: Path, tmp_path: Path
) -> None:
    out, told = tmp_path / "engine", threading.Event()
    built: list[Built] = []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("waiting for process "):
            told.set()

    second = threading.Thread(
        target=lambda: built.append(build_engine(checkpoint, "cpu", "fp32", out, progress))
    )
    with building(out):
        second.start()
        assert told.wait(20)
        build(checkpoint, tmp_path / "first")
        (tmp_path / "first").rename(out)
    second.join()
    assert built[0].up_to_date
    assert neighbours(out) == {"engine"}


# What is refused


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        ("tpu", "fp32", "target 'tpu' is not known; known: cpu, gpu, sm80"),
        ("", "fp32", "known: cpu"),
        ("sm121", "fp32", "precision 'fp32' is not built for sm121; known: bf16"),
        ("sm121", "fp8", "does not depend on a checkpoint"),
        ("cpu", "int3", "precision 'int3' is not built for cpu; known: fp32, fp8, int4, nvfp4"),
    ],
)
def test_an_unknown_target_or_precision_is_refused_with_what_is_known(
    checkpoint: Path, tmp_path: Path, target: str, precision: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_engine(checkpoint, target, precision, tmp_path / "engine")
    assert neighbours(tmp_path / "engine") == set()


def test_a_broken_checkpoint_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    tensors = hf_tensors(SOURCE)
    del tensors["model.decoder.norm.weight"]
    write_weights(checkpoint, GEOMETRY, tensors)
    with pytest.raises(ConfigurationError, match=r"missing tensors: model\.decoder\.norm\.weight"):
        build(checkpoint, tmp_path / "engine")
    assert neighbours(tmp_path / "engine") == set()


def test_a_directory_that_holds_something_else_is_not_overwritten(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="holds no engine; choose another --out"):
        build(checkpoint, tmp_path / "engine")
    assert (tmp_path / "engine" / "thesis.txt").read_text() == "years of work"


def test_an_empty_directory_may_be_filled(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    assert not build(checkpoint, tmp_path / "engine").up_to_date
