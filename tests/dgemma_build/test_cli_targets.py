from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.sizes import Model
from dgemma.targets import load_targets
from dgemma_build.buffers import buffers, total
from dgemma_build.cli import app
from dgemma_build.envelope import Envelope
from tests.dgemma.test_targets import ENTRY, write


def run(command: str, *arguments: object, **env: str) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)], env=env)


def printed(command: str, *arguments: object, **env: str) -> str:
    result = run(command, *arguments, **env)
    assert result.exit_code == 0, result.output + result.stderr
    return result.stdout


def parsed(command: str, *arguments: object, **env: str) -> Any:
    return json.loads(printed(command, *arguments, "--json", **env))


def line_of(text: str, *words: str) -> str:
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


# targets


def test_every_target_is_a_line() -> None:
    text = printed("targets")
    for target in load_targets().values():
        line = line_of(text, f" {target.name} ", target.flavour)
        assert ", ".join(target.precisions) in line
        assert all(gpu.name in line for gpu in target.gpus)
    assert line_of(text, " cpu ").rstrip().endswith("yes")


def test_targets_as_json() -> None:
    entries = parsed("targets")
    assert [entry["name"] for entry in entries] == list(load_targets())
    (cpu,) = [entry for entry in entries if entry["name"] == "cpu"]
    assert (cpu["buildable"], cpu["why_not"]) == (True, None)
    assert all((entry["why_not"] is None) == entry["buildable"] for entry in entries)
    assert entries[-1]["gpus"][0]["published"][0]["tokens_per_s"] == 150


# A target that an operator adds


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_file_adds_a_target_to_both_commands(tmp_path: Path, by_environment: bool) -> None:
    figure = 'system = "someone"\nsource = "a forum"\ntokens_per_s = 99.5\nprecision = "int4"'
    write(tmp_path, f"{ENTRY}\n[[gpus.published]]\n{figure}\nsteps = 20\n")
    options = [] if by_environment else ["--targets", tmp_path]
    env = {"DGEMMA_TARGETS": str(tmp_path)} if by_environment else {}

    line = line_of(printed("targets", *options, **env), "sm86")
    assert "RTX 3090" in line and "tensorrt_rtx" in line and "8 × 16384" in line
    assert "sm86" in {entry["name"] for entry in parsed("targets", *options, **env)}

    text = printed("estimate", "--target", "sm86", *options, **env)
    assert "RTX 3090" in text and "99.5 someone" in text
    found = parsed("estimate", "--target", "sm86", *options, **env)["estimates"]
    assert [(e["gpu"], e["precision"], e["fits"]) for e in found] == [
        ("RTX 3090", "bf16", False),
        ("RTX 3090", "int4", True),
    ]
    int4 = found[1]
    assert int4["floor_ms"] == pytest.approx(int4["bytes_per_pass"]["floor"] / 936e6)
    assert int4["published"][0]["compared_at_steps"] == 20
    # A new GPU appears among all others as well.
    assert "RTX 3090" in {e["gpu"] for e in parsed("estimate", *options, **env)["estimates"]}


def test_without_its_file_the_target_is_gone() -> None:
    result = run("estimate", "--target", "sm86")
    assert result.exit_code == 2
    assert "error: target 'sm86' is not known; known: cpu, gpu, sm80" in result.stderr


# estimate


def test_the_tables_show_what_the_json_says() -> None:
    options = ("--target", "sm90", "--precision", "fp8", "--steps", "16,48")
    h100 = parsed("estimate", *options)["estimates"][0]
    text = printed("estimate", *options)
    fit, speed = (line for line in text.splitlines() if "H100 80 GB" in line)
    assert f"{h100['used_bytes'] / 1e9:.1f}" in fit and " yes " in fit
    assert f" {h100['most_slots']} " in fit
    assert all(f"{s['rows']} × {s['context']}" in fit for s in h100["supported"])
    assert f"{h100['floor_ms']:.1f}" in speed
    assert all(f" {h100['tokens_per_s'][n]:.0f} " in speed for n in ("16", "48"))
    assert "1008 vLLM" in speed and speed.rstrip().endswith(" 55 %")
    assert "375 vLLM recipe" in text and "≈ 20 %" in text


def test_json_lists_every_buffer() -> None:
    (found,) = parsed("estimate", "--target", "sm120", "--precision", "int4")["estimates"]
    expected = buffers(Model.of(named_geometry(DEFAULT), "int4"), Envelope(1, 2, 8192))
    assert [(b["name"], b["bytes"]) for b in found["buffers"]] == [
        (b.name, b.bytes) for b in expected
    ]
    assert found["used_bytes"] == total(expected)


def test_a_table_lists_every_buffer() -> None:
    text = printed("estimate", "--target", "sm120", "--precision", "int4", "--verbose")
    envelope = Envelope(1, 2, 8192)
    expected = buffers(Model.of(named_geometry(DEFAULT), "int4"), envelope)
    assert "RTX 5090, int4: 1 × 8192 tokens, 2 rows" in text
    for buffer in expected:
        assert f"{buffer.bytes / 1e6:.1f}" in line_of(text, f" {buffer.name} ")
    assert f"{total(expected) / 1e6:.1f}" in line_of(text, "together")
    assert "together" not in printed("estimate", "--target", "sm120", "--precision", "int4")


@pytest.mark.parametrize("options", [(), ("--capacity", "48")])
def test_the_published_footprint_is_judged(options: tuple[str, ...]) -> None:
    asked = ("--target", "sm89", "--precision", "int4", "--policy", "all", *options)
    bar = parsed("estimate", *asked)["consumer_bar"]
    (found,) = [
        e
        for e in parsed("estimate", *asked)["estimates"]
        if (e["gpu"], e["precision"]) == ("RTX 4090", "int4")
    ]
    assert bar["used_bytes"] == found["used_bytes"]
    assert bar["holds"] and bar["used_bytes"] <= 18e9
    text = " ".join(printed("estimate", *asked).split())
    assert f"takes {bar['used_bytes'] / 1e9:.2f} GB" in text
    assert f"under it by {bar['margin_bytes'] / 1e9:.2f} GB" in text


def test_it_is_judged_of_the_published_model_alone(demo_checkpoint: Path) -> None:
    assert parsed("estimate", "--checkpoint", demo_checkpoint)["consumer_bar"] is None
    assert parsed("estimate", "--precision", "fp8")["consumer_bar"] is None


def test_a_checkpoint_is_estimated_by_its_config(demo_checkpoint: Path) -> None:
    found = parsed("estimate", "--checkpoint", demo_checkpoint, "--precision", "fp32")
    (cpu,) = found["estimates"]
    assert (cpu["gpu"], cpu["fits"], cpu["floor_ms"]) == ("this machine", True, None)
    assert cpu["envelope"]["context"] == 1024  # the model's own limit
    weights = sum(b["bytes"] for b in cpu["buffers"] if b["name"].startswith("weights"))
    assert weights / 1e6 == pytest.approx(2.5, abs=0.1)
    text = printed("estimate", "--checkpoint", demo_checkpoint, "--precision", "fp32")
    assert "this machine" in text and "floor" not in text


def test_a_geometry_by_name_is_the_default() -> None:
    asked = ("--target", "sm121", "--precision", "fp8")
    assert parsed("estimate", *asked) == parsed("estimate", *asked, "--geometry", DEFAULT)


def test_a_policy_is_counted() -> None:
    asked = ("--target", "sm121", "--precision", "nvfp4")
    default, everything = (
        parsed("estimate", *asked, *more)["estimates"][0] for more in ([], ["--policy", "all"])
    )
    assert everything["used_bytes"] < default["used_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp7"], "precision 'fp7' is not served: cpu serves fp32"),
        (
            ["--target", "sm89", "--precision", "nvfp4"],
            "precision 'nvfp4' is not served: sm89 serves bf16",
        ),
        (["--geometry", "7b"], "geometry '7b' is not known; known: diffusiongemma-26b-a4b"),
        (["--geometry", DEFAULT, "--checkpoint", "x"], "--checkpoint and --geometry exclude each"),
        (["--checkpoint", "[bold]x"], "[bold]x/config.json: no such file"),
        (["--context", "300000"], "context: got 300000; allowed: 1 to 262144"),
        (["--steps", "16;20"], "steps: got '16;20'; allowed: whole numbers with commas"),
        (["--steps", "0"], "steps: got [0]; allowed: numbers from 1 on"),
        (["--rows", "0"], "rows: got 0; allowed: numbers from 1 on"),
        (
            ["--policy", "most", "--precision", "fp8"],
            "precision fp8 has no policy 'most'; known: all, feed_forward, ex",
        ),
        (["--targets", "/nowhere/at/all"], "/nowhere/at/all: no such directory of target files"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(options: list[str], message: str) -> None:
    result = run("estimate", *options)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_a_bad_target_file_stops_both_commands(tmp_path: Path) -> None:
    path = write(tmp_path, ENTRY.replace("max_rows = 8", "max_rows = 0"))
    for command in ("targets", "estimate"):
        result = run(command, "--targets", tmp_path)
        assert result.exit_code == 2
        assert f"error: {path}: max_rows: Input should be greater than" in result.stderr
