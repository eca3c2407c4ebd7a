from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dgemma.store_manifest import FILE_NAME
from dgemma.weight_store import WeightStore
from dgemma_build.cli import app
from tests.quantized_checkpoint import quantized

# The command, which waits before its third shard to be interrupted there.
# A shell that runs the tests in the background has them, and theirs, ignore Ctrl-C.
WAITING = """
import signal
import time
import dgemma_build.quantize.run as run
from dgemma_build.cli import app
write = run.write_shard
def first_two(path, *rest):
    print(path.name, flush=True)
    if path.name == "layer-02.safetensors":
        time.sleep(600)
    return write(path, *rest)
run.write_shard = first_two
signal.signal(signal.SIGINT, signal.default_int_handler)
app()
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)], env={"COLUMNS": "300"})


def said(result: Result) -> str:
    return result.output + result.stderr


def arguments(checkpoint: Path, out: Path, precision: str = "int4") -> list[str]:
    return ["--checkpoint", str(checkpoint), "--precision", precision, "--out", str(out)]


@pytest.mark.parametrize("precision", ["fp8", "int4", "nvfp4", "bf16"])
def test_the_demo_checkpoint_becomes_a_store(
    demo_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "store"
    result = run(*arguments(demo_checkpoint, out, precision))
    assert result.exit_code == 0, said(result)
    assert f"{out}: {precision} store written: " in said(result)
    assert "parameters in bf16" in said(result)
    assert WeightStore.open(out, deep=True).manifest.precision == precision
    again = run(*arguments(demo_checkpoint, out, precision))
    assert again.exit_code == 0
    assert f"{precision} store is up to date" in said(again)


def test_what_was_quantised_is_counted_and_sized(demo_checkpoint: Path, tmp_path: Path) -> None:
    result = run(*arguments(demo_checkpoint, tmp_path / "store"), "--policy", "experts")
    size = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.safetensors"))
    assert f"{size / 1000:.1f} kB, 131 parameters in bf16, 12 parameters in int4" in said(result)


def test_who_quantised_is_said_where_it_was_not_this_software(tmp_path: Path) -> None:
    checkpoint = quantized("ModelOpt NVFP4").write(tmp_path / "checkpoint")
    result = run(*arguments(checkpoint, tmp_path / "store", "nvfp4"))
    assert "taken over from ModelOpt NVFP4" in said(result)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--precision", "fp7", "precision 'fp7' is no weight store's; known: fp8, int4"),
        (
            "--policy",
            "some",
            "precision int4 has no policy 'some'; known: feed_forward, all, experts",
        ),
    ],
)
def test_what_cannot_be_quantised_is_one_sentence_and_exit_code_2(
    demo_checkpoint: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    result = run(*arguments(demo_checkpoint, tmp_path / "store"), option, value)
    assert result.exit_code == 2
    assert f"error: {message}" in said(result)
    assert "Traceback" not in said(result)
    assert list(tmp_path.iterdir()) == []


def test_a_message_with_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    result = run(*arguments(tmp_path / "[bold]odd", tmp_path / "store"))
    assert result.exit_code == 2
    assert "[bold]odd/config.json" in said(result)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_is_gone_on_with(
    demo_checkpoint: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "store"
    command = [sys.executable, "-c", WAITING, "quantize", *arguments(demo_checkpoint, out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        begun = [process.stdout.readline() for _ in range(3)]
        assert begun == [f"layer-0{i}.safetensors\n" for i in range(3)]
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
    assert not out.exists()
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; run the same command again to go on from here" in errors
        assert "Traceback" not in errors
    work = tmp_path / "store.partial"
    assert not (work / FILE_NAME).exists()
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    assert set(finished) == {"layer-00.safetensors", "layer-01.safetensors"}
    assert run(*arguments(demo_checkpoint, out)).exit_code == 0
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    resumed = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.rmtree(out)
    assert run(*arguments(demo_checkpoint, out)).exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == resumed


def test_the_command_is_among_the_others() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "quantize" in result.output and "engine" in result.output
