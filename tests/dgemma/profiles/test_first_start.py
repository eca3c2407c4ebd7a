from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgemma.profiles.aside import Aside, set_aside
from dgemma.profiles.builder import Builder, BuildFailed
from dgemma.profiles.first_start import build_first
from dgemma.profiles.inventory import Inventory
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.profiles.stores import GEOMETRY, ON_SPARK, write_engine, write_weights

# Answers as `dgemma-build` does and notes how it was called.
PROGRAM = """
import json, sys
from pathlib import Path
here, arguments = Path(__file__).parent, sys.argv[1:]
if arguments[0] == "targets":
    print((here / "targets.json").read_text())
    sys.exit()
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + chr(10))
print("compile 40 %", flush=True)
if arguments[arguments.index("--precision") + 1] in (here / "failing").read_text():
    print("error: the graph is not accepted", file=sys.stderr)
    sys.exit(2)
"""


class FakeBuilder:
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        (directory / "build.py").write_text(PROGRAM)
        self.builder = Builder((sys.executable, str(directory / "build.py")))
        self.knows()
        self.fails_at("")

    def knows(self, **changes: Any) -> None:
        spark = {
            "name": "sm121",
            "flavour": "tensorrt_rtx",
            "precisions": ["fp8", "nvfp4"],
            "buildable": True,
            "why_not": None,
        }
        (self.directory / "targets.json").write_text(json.dumps([spark | changes]))

    def fails_at(self, precisions: str) -> None:
        (self.directory / "failing").write_text(precisions)

    @property
    def calls(self) -> list[dict[str, str]]:
        """Options of every build."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        pairs = [json.loads(line)[1:] for line in lines]
        return [dict(zip(p[::2], p[1::2], strict=True)) for p in pairs]


@pytest.fixture
def fake(tmp_path: Path) -> FakeBuilder:
    return FakeBuilder(tmp_path / "builder")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Weights in three precisions, one of them in two revisions."""
    write_weights(tmp_path / "store" / "fp8", "fp8")
    write_weights(tmp_path / "store" / "int4", "int4")
    write_weights(tmp_path / "store" / "nvfp4", "nvfp4", source="new", written=2e9)
    write_weights(tmp_path / "store" / "older", "nvfp4", source="old")
    return tmp_path / "store"


def test_what_is_preferred_is_built_of_its_newest_weights(
    fake: FakeBuilder, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert build_first(Inventory.of(store), ON_SPARK, GEOMETRY, fake.builder) == []
    [call] = fake.calls
    assert call["--store"] == str(store / "nvfp4")
    assert (call["--target"], call["--precision"]) == ("sm121", "nvfp4")
    out = Path(call["--out"])
    assert out.parent == store / "engines"
    assert out.name.startswith("sm121-nvfp4-tensorrt_rtx-1.7.1.116-")
    assert "building: compile 40 %" in caplog.messages


def test_where_it_fails_the_next_precision_is_built_and_the_reason_kept(
    fake: FakeBuilder, store: Path
) -> None:
    fake.fails_at("nvfp4")
    [refused] = build_first(Inventory.of(store), ON_SPARK, GEOMETRY, fake.builder)
    assert refused.name == "tensorrt_rtx-sm121-nvfp4-tp1-pp1"
    assert refused.reason == "cannot be built: the graph is not accepted"
    assert [call["--precision"] for call in fake.calls] == ["nvfp4", "fp8"]


def test_what_is_set_aside_is_not_built_again_in_the_same_version(
    fake: FakeBuilder, store: Path
) -> None:
    place = store / "engines" / "sm121-nvfp4-tensorrt_rtx-1.7.1.116-0123456789ab"
    set_aside(write_engine(place, "nvfp4", "sm121"), Aside.of("verification", "wrong"))
    assert build_first(Inventory.of(store), ON_SPARK, GEOMETRY, fake.builder) == []
    newer = replace(ON_SPARK, runtimes=dict(ON_SPARK.runtimes) | {"tensorrt_rtx": "1.8"})
    assert build_first(Inventory.of(store), newer, GEOMETRY, fake.builder) == []
    assert [call["--precision"] for call in fake.calls] == ["fp8", "nvfp4"]


def test_where_all_fail_each_says_why(fake: FakeBuilder, store: Path) -> None:
    fake.fails_at("nvfp4 fp8")
    refused = build_first(Inventory.of(store), ON_SPARK, GEOMETRY, fake.builder)
    assert [r.name for r in refused] == [
        *(f"tensorrt_rtx-sm121-{precision}-tp1-pp1" for precision in ("nvfp4", "fp8")),
        "gpu",  # which this builder does not know
    ]


def test_without_weights_of_the_model_nothing_is_built(fake: FakeBuilder, store: Path) -> None:
    other = geometry_of(vocab_size=99)
    assert build_first(Inventory.of(store), ON_SPARK, other, fake.builder) == []
    assert fake.calls == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"buildable": False, "why_not": "tensorrt does not import"}, "tensorrt does not import"),
        ({"name": "sm90"}, "target sm121 is not known; known: sm90"),
    ],
)
def test_a_target_that_cannot_be_built_here(
    fake: FakeBuilder, store: Path, changes: dict[str, Any], reason: str
) -> None:
    fake.knows(**changes)
    refused, kernels = build_first(Inventory.of(store), ON_SPARK, GEOMETRY, fake.builder)
    assert (refused.name, kernels.name) == ("sm121", "gpu")
    assert "no engine for sm121, and none can be built here" in refused.reason
    assert reason in refused.reason
    assert "target gpu is not known" in kernels.reason
    assert fake.calls == []


def test_without_a_builder(store: Path) -> None:
    [refused] = build_first(Inventory.of(store), ON_SPARK, GEOMETRY, None)
    assert "dgemma-build is not installed here" in refused.reason


def test_a_store_that_is_read_only(
    fake: FakeBuilder, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    [refused] = build_first(Inventory.of(store), ON_SPARK, GEOMETRY, fake.builder)
    assert "is read only" in refused.reason
    assert fake.calls == []


def test_a_builder_that_dies_without_a_word() -> None:
    builder = Builder((sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(BuildFailed, match="without a word"):
        builder.output("targets")
    with pytest.raises(BuildFailed, match="without a word"):
        builder.run("engine", say=print)
