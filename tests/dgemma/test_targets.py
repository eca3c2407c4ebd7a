from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgemma.errors import ConfigurationError
from dgemma.targets import Gpu, Target, load_targets, select
from dgemma.targets.products import gpus_for

ENTRY = """
flavour = "tensorrt_rtx"
compute_capability = "8.6"
precisions = ["bf16", "int4"]
max_rows = 8
max_context = 16384

[[gpus]]
name = "RTX 3090"
memory_bytes = 25_769_803_776
bandwidth_bytes_per_s = 936_000_000_000
"""


def write(directory: Path, text: str = ENTRY, name: str = "sm86") -> Path:
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


def refusal(directory: Path, text: str) -> str:
    path = write(directory, text)
    with pytest.raises(ConfigurationError) as caught:
        load_targets(directory)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# What is shipped


def test_every_gpu_has_its_target() -> None:
    found = {name: [gpu.name for gpu in t.gpus] for name, t in load_targets().items()}
    assert found == {
        "cpu": [],
        "gpu": [],
        "sm80": ["A100 80 GB"],
        "sm89": ["RTX 4090", "L40S"],
        "sm90": ["H100 80 GB", "H200"],
        "sm100": ["B200"],
        "sm103": ["DGX Station GB300", "GB300, server"],
        "sm120": ["RTX 5090"],
        "sm121": ["DGX Spark GB10"],
    }


@pytest.mark.parametrize("target", load_targets().values(), ids=lambda t: t.name)
def test_a_shipped_entry_is_consistent(target: Target) -> None:
    if target.name in ("cpu", "gpu"):
        flavour = "onnxruntime" if target.name == "cpu" else "torch"
        assert (target.flavour, target.compute_capability) == (flavour, None)
        return
    assert target.compute_capability is not None
    assert target.name == "sm" + target.compute_capability.replace(".", "")
    version = float(target.compute_capability)
    assert ("nvfp4" in target.precisions) == (version >= 10)
    assert ("fp8" in target.precisions) == (version >= 8.9)
    assert "fp32" not in target.precisions
    # TensorRT-RTX is for workstations and builds without the GPU; these it does not know.
    assert (target.flavour == "tensorrt") == (9 <= version < 12)
    for gpu in target.gpus:
        assert gpu.bandwidth_bytes_per_s is not None
        assert {p.precision for p in gpu.published} <= set(target.precisions)


def test_unified_memory_leaves_room_for_the_host() -> None:
    (spark,) = load_targets()["sm121"].gpus
    assert spark.unified
    assert spark.usable_bytes == spark.memory_bytes - spark.head_room_bytes < spark.memory_bytes
    others = [g for t in load_targets().values() for g in t.gpus if g is not spark]
    assert not any(gpu.unified for gpu in others if gpu.name != spark.name)


def test_entries_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_targets()["cpu"].max_rows = 3


# An operator's own


def test_a_file_is_a_target(tmp_path: Path) -> None:
    write(tmp_path)
    targets = load_targets(tmp_path)
    assert targets.keys() - load_targets().keys() == {"sm86"}
    assert targets["sm86"] == Target(
        name="sm86",
        flavour="tensorrt_rtx",
        compute_capability="8.6",
        precisions=("bf16", "int4"),
        max_rows=8,
        max_context=16384,
        gpus=(Gpu(name="RTX 3090", memory_bytes=24 * 2**30, bandwidth_bytes_per_s=936 * 10**9),),
    )


def test_targets_come_in_the_order_of_their_capability(tmp_path: Path) -> None:
    write(tmp_path)
    assert list(load_targets(tmp_path))[:5] == ["cpu", "gpu", "sm80", "sm86", "sm89"]


def test_a_namesake_replaces_what_is_shipped(tmp_path: Path) -> None:
    write(tmp_path, name="sm89")
    assert [gpu.name for gpu in load_targets(tmp_path)["sm89"].gpus] == ["RTX 3090"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="absent: no such directory of target files"):
        load_targets(tmp_path / "absent")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tensorrt_rtx"', '"tensorrt_rx"', "flavour: Input should be 'onnxruntime', 'tensorrt_"),
        ('"bf16", "int4"', '"int4", "int3"', "precisions.1: Input should be 'fp32', 'bf16',"),
        ('"bf16", "int4"', "", "precisions: Tuple should have at least 1 item"),
        ('"8.6"', '"86"', r"compute_capability: String should match pattern '^\d+\.\d$', got '86'"),
        ('compute_capability = "8.6"', "", "entry: Value error, tensorrt_rtx needs a compute_ca"),
        ("max_rows = 8", "max_rows = 1", "max_rows: Input should be greater than or equal to 2"),
        ("max_rows = 8", "", "max_rows: is missing"),
        ("max_rows = 8", 'max_rows = "8"', "max_rows: Input should be a valid integer, got '8'"),
        ("max_context = 16384", "max_contxt = 1", "max_context: is missing"),
        ("max_rows = 8", "max_rows = 8\nrows = 8", "rows: no such field; check its spelling"),
        ("25_769_803_776", "-1", "gpus.0.memory_bytes: Input should be greater than 0, got -1"),
        ("25_769_803_776", "1\nhead_room_bytes = 1", "gpus.0: Value error, head_room_bytes must"),
        (
            "25_769_803_776",
            '1\nplatform = "x"',
            "gpus.0: Value error, platform needs bandwidth",
        ),
        ("max_rows = 8", 'name = "x"\nmax_rows = 8', "name: the file's name is the target's"),
        ('"tensorrt_rtx"', '"torch"', "entry: Value error, torch serves any GPU; leave out comp"),
        ("max_rows = 8", "max_rows = ", "cannot be read as TOML: Invalid value (at line 5"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in ENTRY
    assert refusal(tmp_path, ENTRY.replace(old, new)).startswith(message)


def test_kernels_are_for_any_gpu_and_for_the_formats_they_multiply(tmp_path: Path) -> None:
    entry = 'flavour = "torch"\nprecisions = ["int4"]\nmax_rows = 8\nmax_context = 512\n'
    write(tmp_path, entry, "small")
    small = load_targets(tmp_path)["small"]
    assert small.on_gpu and not small.has_plan and small.gpus == ()
    message = refusal(tmp_path, entry.replace('"int4"', '"fp32", "bf16", "nvfp4"'))
    assert message == (
        "entry: Value error, torch has kernels for bf16, fp8, int4, nvfp4, not for fp32"
    )


def test_what_is_for_any_gpu_has_the_products_of_all_that_can_run_it(tmp_path: Path) -> None:
    write(tmp_path)  # of a capability without kernels
    targets = load_targets(tmp_path)
    every = targets.values()
    shipped = [gpu.name for target in load_targets().values() for gpu in target.gpus]
    for precision in ("bf16", "int4"):
        assert [gpu.name for gpu in gpus_for(targets["gpu"], precision, every)] == shipped
    for precision in ("fp8", "nvfp4"):
        assert [gpu.name for gpu in gpus_for(targets["gpu"], precision, every)] == shipped[1:]
    assert shipped[0] == "A100 80 GB"
    assert gpus_for(targets["sm86"], "bf16", every) == targets["sm86"].gpus
    assert gpus_for(targets["cpu"], "int4", every) == ()


def test_a_published_figure_says_of_what(tmp_path: Path) -> None:
    figure = '[[gpus.published]]\nsystem = "x"\nsource = "y"\ntokens_per_s = 9\n'
    assert refusal(tmp_path, ENTRY + figure) == "gpus.0.published.0.precision: is missing"


def test_a_name_that_no_option_could_spell(tmp_path: Path) -> None:
    write(tmp_path, name="RTX 3090")
    with pytest.raises(ConfigurationError, match=r"name: String should match pattern"):
        load_targets(tmp_path)


def test_a_target_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'sm86' is not known; known: cpu, gpu, sm80, .*sm121"
    ):
        select(load_targets(), "sm86")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"= 3"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sm86.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"sm86.toml: cannot be read as TOML"):
        load_targets(tmp_path)


def test_other_files_beside_targets_are_no_targets(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("notes")
    assert load_targets(tmp_path) == load_targets()


def test_an_entry_survives_json() -> None:
    for target in load_targets().values():
        data: dict[str, Any] = target.model_dump()
        assert Target.model_validate(data) == target
