"""A server with something wrong does not start, and says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError
from dgemma.triton_server.server import TritonServer
from tests.manifests import edit_manifest, renew_hashes
from tests.triton.servers import serving

BUILD = "dgemma-build engine --checkpoint DIR"


def overwrite(path: Path, content: str) -> None:
    path.write_text(content)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_garbage_graph(path: Path) -> None:
    """A graph that the manifest vouches for, but that is none."""
    path.write_bytes(b"no graph")
    renew_hashes(path.parent)


def another_geometry(path: Path) -> None:
    text = json.loads(path.read_text())["text_config"]
    change(path, text_config={**text, "sliding_window": 64})


TENSORRT = {"flavour": "tensorrt", "version": "11.4", "compute_capability": 90}

Damage = tuple[str, str, Callable[[Path], object], str, str]
# Directory, file, what is done to it, and what the error says besides the file: what, and the cure.
DAMAGES: dict[str, Damage] = {
    "corrupt graph": ("engine", "graph.onnx", flip_a_byte, "its content has changed", BUILD),
    "garbage graph": ("engine", "graph.onnx", write_garbage_graph, "cannot load it", BUILD),
    "missing graph": ("engine", "graph.onnx", Path.unlink, "missing from the engine", BUILD),
    "truncated weights": (
        "engine",
        "weights.safetensors",
        halve,
        "bytes, manifest.json says",
        BUILD,
    ),
    "missing weights": ("engine", "weights.safetensors", Path.unlink, "missing from the", BUILD),
    "missing manifest": ("engine", "manifest.json", Path.unlink, "no engine here", BUILD),
    "corrupt manifest": ("engine", "manifest.json", halve, "cannot be read", BUILD),
    "manifest of another schema": (
        *("engine", "manifest.json", lambda path: edit_manifest(path.parent, schema_version=99)),
        *("schema version 99", BUILD),
    ),
    "engine for another target": (
        *("engine", "", lambda path: edit_manifest(path, target="sm90", runtime=TENSORRT)),
        *("compiled for a GPU of compute capability 90", "select an engine for target cpu"),
    ),
    "missing tokenizer": ("checkpoint", "tokenizer.json", Path.unlink, "no such file", "copy it"),
    "corrupt tokenizer": ("checkpoint", "tokenizer.json", halve, "not a tokenizer", "copy it"),
    "missing config": ("checkpoint", "config.json", Path.unlink, "no such file", "point at"),
    "missing generation config": (
        *("checkpoint", "generation_config.json", Path.unlink, "no such file", "copy it"),
    ),
    "corrupt chat template": (
        *("checkpoint", "chat_template.jinja", lambda path: overwrite(path, "{% if %}")),
        *("line 1", "copy it again"),
    ),
    "checkpoint of another geometry": (
        *("checkpoint", "config.json", another_geometry, "another geometry", "build the engine"),
    ),
}


@pytest.fixture
def copies(demo_environment: dict[str, str], tmp_path: Path) -> dict[str, Path]:
    """An engine and a checkpoint to be damaged."""
    paths = {"engine": tmp_path / "engine", "checkpoint": tmp_path / "checkpoint"}
    shutil.copytree(demo_environment["NIM_MODEL_PATH"], paths["engine"])
    shutil.copytree(demo_environment["DGEMMA_CHECKPOINT"], paths["checkpoint"])
    return paths


def settings(copies: dict[str, Path]) -> dict[str, str]:
    return {
        "NIM_MODEL_PATH": str(copies["engine"]),
        "DGEMMA_CHECKPOINT": str(copies["checkpoint"]),
    }


def refusal(model_repository: Path, environment: dict[str, str], log: Path) -> str:
    """What the server says instead of starting."""
    server = TritonServer(model_repository, env=environment, log=log, start_timeout_s=60)
    try:
        with pytest.raises(ConfigurationError) as caught:
            server.start()
    finally:
        server.stop()
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_to_do(
    copies: dict[str, Path], model_repository: Path, tmp_path: Path, damage: str
) -> None:
    directory, name, spoil, what, cure = DAMAGES[damage]
    path = copies[directory] / name
    spoil(path)
    said = refusal(model_repository, settings(copies), tmp_path / "log")
    assert str(path) in said
    assert what in said
    assert cure in said
    assert "Traceback" not in said


def test_numpy_2_in_the_stub_is_refused(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    """The process that starts the server has numpy 1, but the one that runs the model does not."""
    repository = tmp_path / "repository"
    shutil.copytree(model_repository, repository)
    model = repository / "diffusion_gemma" / "1" / "model.py"
    pretence = "import numpy\nnumpy.__version__ = '2.1.0'\n"
    model.write_text(model.read_text().replace("import triton_p", pretence + "import triton_p", 1))
    said = refusal(repository, demo_environment, tmp_path / "log")
    assert said.startswith("numpy 2.1.0 in ")
    assert "pip install 'numpy<2'" in said


def test_serve_refuses_numpy_2_before_anything_is_started(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    distribution = tmp_path / "site" / "numpy-2.1.0.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    environment = {**demo_environment, "PYTHONPATH": str(distribution.parent)}
    with serving(model_repository, environment, tmp_path / "log") as serve:
        assert serve.exit_code() == 2
        assert serve.output.startswith("error: numpy 2.1.0 in ")
        assert "pip install 'numpy<2'" in serve.output


def test_a_python_without_a_shared_library_is_refused(
    demo_environment: dict[str, str],
    model_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr("sys.base_prefix", str(tmp_path))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    said = refusal(model_repository, demo_environment, tmp_path / "log")
    assert "linked statically" in said
    assert "apt-get install libpython3." in said


def test_serve_says_in_one_line_what_is_wrong_and_exits_with_an_error(
    copies: dict[str, Path], model_repository: Path, tmp_path: Path
) -> None:
    flip_a_byte(copies["engine"] / "weights.safetensors")
    with serving(model_repository, settings(copies), tmp_path / "log") as serve:
        traces = serve.wait_for_server()
        assert serve.exit_code() == 2
        last = serve.output.splitlines()[-1]
        assert last.startswith(f"error: {copies['engine']}/weights.safetensors: its content has")
        assert traces.left() == []


@pytest.mark.parametrize("variable", ["NIM_MODEL_PATH", "DGEMMA_CHECKPOINT"])
def test_serve_names_a_setting_that_is_missing(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path, variable: str
) -> None:
    environment = {**demo_environment, variable: ""}
    with serving(model_repository, environment, tmp_path / "log") as serve:
        assert serve.exit_code() == 2
        assert serve.output.startswith(f"error: {variable}: not set; set it to the ")


def test_a_model_repository_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: no such model repository"):
        TritonServer(tmp_path / "nowhere").start()
