"""Checkpoints with a real configuration and a few bytes of weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dgemma.cli import app

DEMO = Path(__file__).resolve().parents[3] / "build" / "demo"
NAMES = ("config.json", "generation_config.json", "tokenizer.json")
WEIGHTS = "model.safetensors"


def write_checkpoint(directory: Path, weights: bytes = b"weights of one") -> Path:
    directory.mkdir(parents=True)
    for name in NAMES:
        shutil.copyfile(DEMO / name, directory / name)
    (directory / WEIGHTS).write_bytes(weights)
    (directory / "notes.txt").write_text("not the model's")
    return directory


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def bring(source: str | Path, store: Path, *options: str | Path) -> Result:
    return run("download-to-cache", *options, "--source", source, "--store", store)


def brought(source: str | Path, store: Path, *options: str | Path) -> Path:
    """The one revision that came."""
    result = bring(source, store, *options)
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip())


def forget_variables(patch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_PATH", "CACHE_PATH", "MODEL_PROFILE", "MODEL_NAME"):
        patch.delenv(f"NIM_{name}", raising=False)
    for name in ("CHECKPOINT", "SIMULATE", "WEIGHT_STORE"):
        patch.delenv(f"DGEMMA_{name}", raising=False)
