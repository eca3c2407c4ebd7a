"""`dgemma-build ensure` against a real model store: once, twice, two at once, killed, and wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from dgemma.bench.report import read_report
from dgemma.manifest import Manifest
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.layout import REASON, REPORT
from dgemma.sealed import FileRecord
from dgemma_build.cli import app
from dgemma_build.ensure.verification import Engine, verified_before
from tests.dgemma.profiles.stores import flip
from tests.model_store import SMALLEST
from tests.oracle.checkpoints import write_tiny_checkpoint

PATIENCE_S = 120.0
COMMAND = (sys.executable, "-m", "dgemma_build.cli", "ensure")


@pytest.fixture(autouse=True)
def no_gpu_and_nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("NIM_", "DGEMMA_"))]:
        if name != "DGEMMA_TESTS_SHARED":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", **SMALLEST)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ensure", *map(str, arguments)], env={"COLUMNS": "300"})


def ensure(store: Path, checkpoint: Path, precision: str = "fp32") -> Result:
    return run("--store", store, "--checkpoint", checkpoint, "--precision", precision)


def stamps(root: Path) -> dict[str, int]:
    """Of files: the lock's comes and goes, which changes its directory."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


def only_engine(root: Path) -> Path:
    [found] = Inventory.of(root).engines
    return found.directory


def make_wrong(engine: Path) -> None:
    """A graph that adds where it should subtract or the other way, sealed as if it were right."""
    manifest = Manifest.read(engine)
    path = engine / manifest.graph
    graph = onnx.load(path, load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == "Softmax")
    node.op_type = "LogSoftmax"
    path.write_bytes(graph.SerializeToString())
    files = dict(manifest.files) | {manifest.graph: FileRecord.of(path)}
    Manifest(**vars(manifest) | {"files": files}).write(engine)


def assert_reports_count_only_as_far_as_they_go(directory: Path) -> None:
    """The report of another graph, or of less than can be done here, is none."""
    path, here = directory / REPORT, Engine(directory, None, runs_here=True)
    text = path.read_text()
    found = json.loads(text)
    other = found["engine"] | {"graph_sha256": "0" * 64}
    assert verified_before(here) is not None
    for changes in ({"executed": False}, {"passed": False}, {"engine": other}, {"day": "today"}):
        path.write_text(json.dumps(found | changes))
        assert verified_before(here) is None, changes
    path.write_text(json.dumps(found | {"executed": False}))
    assert verified_before(Engine(directory, None, runs_here=False)) is not None
    path.write_text(text)


@pytest.mark.usefixtures("emitted_once")
def test_what_is_verified_is_left_alone_and_what_is_wrong_set_aside_until_it_is_right(
    checkpoint: Path, tmp_path: Path
) -> None:
    first = ensure(tmp_path, checkpoint)
    assert first.exit_code == 0, first.output
    assert "engine, verification in " in first.output
    engine = only_engine(tmp_path)
    assert engine.name.startswith("cpu-fp32-onnxruntime-1.")
    report = read_report(engine / REPORT)
    assert report.passed and report.executed
    before = stamps(tmp_path)
    second = ensure(tmp_path, checkpoint)
    assert second.exit_code == 0 and "up to date and verified; nothing to do" in second.output
    assert stamps(tmp_path) == before
    assert_reports_count_only_as_far_as_they_go(engine)
    make_wrong(engine)
    wrong = ensure(tmp_path, checkpoint)
    assert wrong.exit_code == 3 and "nothing else can be served here" in wrong.output
    away = engine.with_name(engine.name + ".set-aside")
    assert not engine.exists() and Inventory.of(tmp_path).engines == ()
    assert "passes: wrong: " in json.loads((away / REASON).read_text())["why"]
    flip(away / "weights.safetensors")  # so that it is built again
    assert ensure(tmp_path, checkpoint).exit_code == 0
    assert only_engine(tmp_path) == engine and not away.exists()


def test_what_cannot_be_built_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    result = ensure(tmp_path, checkpoint, "nvfp5")
    assert result.exit_code == 2 and "'nvfp5' is not built for cpu; known: fp32" in result.output
    result = run("--store", tmp_path)
    assert result.exit_code == 2 and "has no current revision" in result.output


# As processes


class Run:
    """A process of its own, whose lines go to a file."""

    def __init__(self, store: Path, checkpoint: Path, log: Path) -> None:
        self.log = log
        arguments = ["--store", store, "--checkpoint", checkpoint, "--precision", "int4"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_one_that_is_killed_is_gone_on_with_and_of_two_one_builds(
    checkpoint: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with Run(store, checkpoint, tmp_path / "killed") as killed:
        killed.wait_until(lambda: list(store.glob("engines/*.partial")))
        killed.process.kill()
        assert killed.process.wait(PATIENCE_S) == -signal.SIGKILL
    assert Inventory.of(store).engines == () and len(Inventory.of(store).weights) == 1
    with (
        Run(store, checkpoint, tmp_path / "first") as first,
        Run(store, checkpoint, tmp_path / "second") as second,
    ):
        assert [r.process.wait(PATIENCE_S) for r in (first, second)] == [0, 0], first.output
    outputs = sorted([first.output, second.output], key=lambda said: "nothing to do" in said)
    assert "is ready: engine, verification in" in outputs[0], "weights were finished before"
    assert "waiting for process " in outputs[1] and "nothing to do" in outputs[1]
    assert not list(store.rglob("*.lock")) and not list(store.rglob("*.partial"))
    assert not list(store.rglob("*.unverified")) and len(Inventory.of(store).engines) == 1


def test_asked_to_end_it_says_how_to_go_on(checkpoint: Path, tmp_path: Path) -> None:
    """As process 1 of a container has to, where nothing else does it."""
    store = tmp_path / "store"
    with Run(store, checkpoint, tmp_path / "log") as ended:
        ended.wait_until(lambda: "2 of 3" in ended.output)
        ended.process.terminate()
        assert ended.process.wait(PATIENCE_S) == 143, ended.output
    assert "run the same command again to go on from here" in ended.output
    assert Inventory.of(store).engines == ()
