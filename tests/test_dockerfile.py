"""The Dockerfile: its stages, what they start from, and as whom and how each image runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

import dgemma

REPOSITORY = Path(__file__).resolve().parent.parent
TARGETS = ("builder", "cpu", "runtime")
IMAGES = ("cpu", "runtime")
Instructions = list[tuple[str, str]]


def _parsed() -> Instructions:
    parser = DockerfileParser(str(REPOSITORY / "Dockerfile"))
    structure = [(each["instruction"], each["value"]) for each in parser.structure]
    return [(name, value) for name, value in structure if name != "COMMENT"]


@cache
def before_the_first() -> dict[str, str]:
    """Arguments that FROM may use, with their defaults."""
    found = {}
    for name, value in _parsed():
        if name == "FROM":
            break
        assert name == "ARG"
        argument, _, default = value.partition("=")
        found[argument] = default
    return found


@cache
def stages() -> dict[str, Instructions]:
    """The instructions of every stage, its FROM included, by the stage's name."""
    found: dict[str, Instructions] = {}
    current: Instructions = []
    for name, value in _parsed():
        if name == "FROM":
            current = found.setdefault(value.rpartition(" AS ")[2], [])
        current.append((name, value))
    return found


def values(stage: str, instruction: str) -> list[str]:
    return [value for name, value in stages()[stage] if name == instruction]


def test_it_has_the_three_targets_and_serving_on_gpus_is_the_default() -> None:
    assert tuple(stages()) == TARGETS


@pytest.mark.parametrize("stage", TARGETS)
def test_every_base_is_an_argument_with_a_tag_of_its_own(stage: str) -> None:
    [base] = values(stage, "FROM")
    match = re.fullmatch(r"\$\{(\w+)\}:\$\{(\w+)\} AS \w+", base)
    assert match is not None, base
    image, tag = (before_the_first()[name] for name in match.groups())
    assert ":" not in image
    assert re.match(r"\d+\.\d+", tag), f"{tag} names no version"


def test_nothing_is_the_latest() -> None:
    assert "latest" not in (REPOSITORY / "Dockerfile").read_text().lower()


def test_the_gpu_image_is_nvidia_s_triton() -> None:
    assert before_the_first()["TRITON_IMAGE"] == "nvcr.io/nvidia/tritonserver"


@pytest.mark.parametrize("stage", IMAGES)
def test_it_runs_as_an_ordinary_user_at_the_end(stage: str) -> None:
    assert values(stage, "USER")[-1] == "1000:1000"


@pytest.mark.parametrize("stage", IMAGES)
def test_it_has_ports_a_health_check_and_an_entry_point_without_a_shell(stage: str) -> None:
    assert values(stage, "EXPOSE") == ["8000 8001 8002"]
    [check] = values(stage, "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["python", "-m", "dgemma.health_check"]
    [entry] = values(stage, "ENTRYPOINT")
    assert json.loads(entry)[0] in {"nim-serve", "dgemma"}


def test_both_images_are_run_in_the_same_way() -> None:
    alike = ("ENV", "COPY", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")
    cpu, runtime = ({name: values(stage, name) for name in alike} for stage in IMAGES)
    assert cpu == runtime


@pytest.mark.parametrize("stage", IMAGES)
def test_labels_and_version(stage: str) -> None:
    [labels] = values(stage, "LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f"VERSION={dgemma.__version__}" in values(stage, "ARG")


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        ("cpu", {"torch", "onnxruntime"}),
        ("runtime", {"torch", "triton", "tensorrt", "tensorrt_rtx"}),
    ],
)
def test_the_build_imports_what_the_engine_needs(stage: str, modules: set[str]) -> None:
    [imported] = re.findall(r'-c "import ([\w, ]+)"', "\n".join(values(stage, "RUN")))
    assert modules <= set(imported.split(", "))


def test_kernels_find_what_compiles_their_launchers() -> None:
    installs = "\n".join(values("runtime", "RUN"))
    assert {"gcc", "python3-dev"} <= set(re.findall(r"[\w-]+", installs))
    [variables] = values("runtime", "ENV")
    assert "TRITON_CACHE_DIR=/opt/nim/.cache/triton" in variables.split()


def test_all_that_is_installed_comes_from_a_lock_file_or_this_repository() -> None:
    for stage in TARGETS:
        for run in values(stage, "RUN"):
            for call in re.findall(r"pip install(.*?)(?:&&|$)", run):
                assert "-r " in call or "/wheels/*.whl" in call or "pip==${PIP_VERSION}" in call


@pytest.mark.parametrize("lock", sorted(REPOSITORY.glob("requirements-*.lock")), ids=str)
def test_lock_files_name_one_version_each(lock: Path) -> None:
    for line in lock.read_text().splitlines():
        if line and not line.startswith(("#", "-c ")):
            assert re.fullmatch(r"[\w.-]+==[\w.]+(; .*)?", line), line


def test_what_the_build_copies_is_not_ignored_and_secrets_are() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "what is not named stays out"
    kept = [line[1:] for line in lines if line.startswith("!")]
    dropped = [line for line in lines[lines.index("*") + 1 :] if line[:1] not in ("", "!", "#")]
    copied = {
        source
        for stage in TARGETS
        for copy in values(stage, "COPY")
        for source in copy.split()[:-1]
    }
    for source in copied:
        assert (REPOSITORY / source).exists()
        above = (Path(source), *Path(source).parents)
        assert any(path.match(pattern) for path in above for pattern in kept), source
        assert not any(path.match(pattern) for path in above for pattern in dropped), source


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed here")
    found = subprocess.run(
        [hadolint, "--no-color", str(REPOSITORY / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
