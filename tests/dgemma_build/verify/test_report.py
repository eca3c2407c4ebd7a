from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from dgemma.bench.report import (
    SCHEMA_FILE,
    Device,
    EngineFacts,
    Report,
    Software,
    json_schema,
    read_report,
)
from dgemma.errors import ConfigurationError
from dgemma.targets import load_targets
from dgemma.targets.products import is_product
from dgemma_build.verify.measured import (
    CPU,
    NEVER,
    measured_platforms,
    reports,
    state,
)

MEASUREMENTS = Path(__file__).parents[3] / "docs" / "measurements"
TARGETS = list(load_targets().values())


def report(**changes: object) -> Report:
    fields = {
        "day": date(2026, 1, 31),
        "executed": True,
        "passed": True,
        "engine": EngineFacts(
            target="sm121",
            precision="int4",
            layers=30,
            hidden_size=2816,
            num_experts=128,
            graph_sha256="abc",
            built_with="tensorrt_rtx 1.7",
        ),
        "software": Software(
            dgemma="0.1", torch="2", runtime="tensorrt_rtx", runtime_version="1.7", driver="580"
        ),
        "device": Device(
            name="NVIDIA GB10", compute_capability=121, memory_bytes=2**37, cores=None
        ),
        "checks": (),
    }
    return Report.model_validate(fields | changes)


def test_the_documented_schema_is_the_models() -> None:
    assert (MEASUREMENTS / SCHEMA_FILE).read_text() == json_schema()


def test_a_report_reads_as_it_was_written(tmp_path: Path) -> None:
    report().write(tmp_path / "a.json")
    assert read_report(tmp_path / "a.json") == report()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"host": "x"}, "host: Extra inputs"), ({"passed": None}, "passed: Input should be")],
)
def test_a_file_of_another_schema_is_refused_with_its_field(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(report().model_dump(mode="json") | change))
    with pytest.raises(ConfigurationError, match=rf"a\.json: {said}.*verify --json` writes"):
        read_report(path)


@pytest.mark.parametrize(
    ("product", "name", "same"),
    [
        ("RTX 5090", "NVIDIA GeForce RTX 5090", True),
        ("RTX 5090", "NVIDIA GeForce RTX 4090", False),
        ("RTX 5090", "NVIDIA GeForce RTX 5090D", False),
        ("DGX Spark GB10", "NVIDIA GB10", True),
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("H100", "NVIDIA H200", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("GB300, server", "NVIDIA GB300", True),
        ("L40S", "NVIDIA L40S", True),
    ],
)
def test_a_drivers_name_and_a_products(product: str, name: str, same: bool) -> None:
    gpus = {gpu.name: gpu for target in TARGETS for gpu in target.gpus}
    found = next(gpu for label, gpu in gpus.items() if label.startswith(product))
    assert is_product(found, name) == same


def test_a_platform_without_a_file_was_never_executed(tmp_path: Path) -> None:
    (tmp_path / SCHEMA_FILE).write_text(json_schema())
    platforms = measured_platforms(reports(tmp_path), TARGETS)
    assert set(platforms) == {CPU, *(gpu.name for target in TARGETS for gpu in target.gpus)}
    assert {state(found) for found in platforms.values()} == {NEVER}


def test_only_a_run_in_which_all_was_right_counts(tmp_path: Path) -> None:
    report(passed=False).write(tmp_path / "wrong.json")
    report(executed=False).write(tmp_path / "looked-at.json")
    platforms = measured_platforms(reports(tmp_path), TARGETS)
    assert state(platforms["DGX Spark GB10"]) == NEVER
    report().write(tmp_path / "right.json")
    platforms = measured_platforms(reports(tmp_path), TARGETS)
    assert state(platforms["DGX Spark GB10"]) == "executed: int4; last on 2026-01-31"
    assert [name for name, found in platforms.items() if found] == ["DGX Spark GB10"]


def test_kernels_count_for_the_gpu_that_ran_them_and_are_told_apart(tmp_path: Path) -> None:
    plan = report()
    ran = {"runtime": "torch", "runtime_version": "2.13.0"}
    kernels = report(
        engine=plan.engine.model_copy(update={"target": "gpu", "precision": "fp8"}),
        software=plan.software.model_copy(update=ran),
    )
    kernels.write(tmp_path / "kernels.json")
    platforms = measured_platforms(reports(tmp_path), TARGETS)
    assert state(platforms["DGX Spark GB10"]) == "executed: fp8 by kernels; last on 2026-01-31"
    assert [name for name, found in platforms.items() if found] == ["DGX Spark GB10"]
    cpu = report(engine=plan.engine.model_copy(update={"target": "cpu"}))
    cpu.write(tmp_path / "cpu.json")
    assert measured_platforms(reports(tmp_path), TARGETS)[CPU] == [cpu]


def test_the_files_that_were_shared_can_be_read() -> None:
    reports(MEASUREMENTS)
