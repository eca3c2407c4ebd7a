from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dgemma.manifest import FILE_NAME
from dgemma_build.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["engine", *map(str, arguments)], env={"COLUMNS": "300"})


def said(result: Result) -> str:
    return result.output + result.stderr


def test_an_engine_that_is_up_to_date_is_said_to_be(
    demo_engine: Path, demo_checkpoint: Path
) -> None:
    before = (demo_engine / FILE_NAME).stat().st_mtime_ns
    result = run("--checkpoint", demo_checkpoint, "--out", demo_engine)
    assert result.exit_code == 0, said(result)
    assert "cpu fp32 engine is up to date" in said(result)
    assert (demo_engine / FILE_NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--target", "sm999", "target 'sm999' is not known; known: cpu"),
        ("--precision", "fp7", "precision 'fp7' is not built for cpu; known: fp32, fp8"),
    ],
)
def test_what_cannot_be_built_is_one_sentence_and_exit_code_2(
    demo_checkpoint: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    result = run(*("--checkpoint", demo_checkpoint, "--out", tmp_path / "engine"), *(option, value))
    assert result.exit_code == 2
    assert f"error: {message}" in said(result)
    assert "Traceback" not in said(result)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_a_checkpoint(tmp_path: Path) -> None:
    result = run("--checkpoint", tmp_path, "--out", tmp_path / "engine")
    assert result.exit_code == 2
    assert "config.json: no such file" in said(result)
    assert not (tmp_path / "engine").exists()


def test_a_message_with_brackets_is_printed_as_it_is(tmp_path: Path, demo_checkpoint: Path) -> None:
    """Square brackets are markup to the library that prints the message."""
    result = run("--checkpoint", tmp_path / "[bold]odd", "--out", tmp_path / "engine")
    assert result.exit_code == 2
    assert "[bold]odd/config.json" in said(result)


def test_options_that_are_missing_are_named(tmp_path: Path) -> None:
    result = run("--checkpoint", tmp_path)
    assert result.exit_code == 2
    assert "--out" in said(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one of --checkpoint, --store and --geometry"),
        (("--checkpoint", "a", "--store", "b"), "name one of --checkpoint, --store and --geometry"),
        (("--store", "b", "--geometry", "c"), "name one of --checkpoint, --store and --geometry"),
        (("--checkpoint", "a", "--max-rows", "4"), "--max-context go with --geometry"),
        (
            ("--geometry", "c", "--weights-as-constants"),
            "--weights-as-constants goes with --checkpoint or --store",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("--out", tmp_path / "engine", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(said(result).split())
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_a_file_adds_is_built_for(tmp_path: Path, demo_checkpoint: Path) -> None:
    """One that takes fewer precisions than the shipped one shows that the file was read."""
    (tmp_path / "little.toml").write_text(
        'flavour = "onnxruntime"\nprecisions = ["int4"]\nmax_rows = 2\nmax_context = 64\n'
    )
    arguments = ("--checkpoint", demo_checkpoint, "--out", tmp_path / "engine")
    result = run(*arguments, "--target", "little", "--targets", tmp_path, "--precision", "fp32")
    assert result.exit_code == 2
    assert "precision 'fp32' is not built for little; known: int4" in said(result)
